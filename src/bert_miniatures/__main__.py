"""`python -m bert_miniatures` is the command `miniatures`."""

from bert_miniatures.cli import main

if __name__ == "__main__":
    main()
