"""Which of the 24 fits a budget on this machine: few are measured, the others modelled; `survey.py` does it."""
