// Transformers.js cuts a long row at its end, with the closing [SEP]. This cuts as Python does, before [SEP] is added:
// of a pair the longer text, and the second one where both are equal.
import { Tensor } from '@huggingface/transformers';

export function encode(tokenizer, texts, pairs = null) {
  const { pad_token_id: pad, model_max_length: most } = tokenizer;
  const [cls, sep] = tokenizer.encode('');
  const rows = texts.map((text, i) => {
    const parts = (pairs ? [text, pairs[i]] : [text]).map((one) => tokenizer.encode(one, { add_special_tokens: false }));
    for (let over = parts.flat().length + 1 + parts.length - most; over > 0; over--) {
      parts.reduce((longest, part) => (part.length >= longest.length ? part : longest)).pop();
    }
    const [first, second = []] = parts.map((ids) => [...ids, sep]);
    return { ids: [cls, ...first, ...second], segments: [...Array(first.length + 1).fill(0), ...second.map(() => 1)] };
  });
  const width = Math.max(...rows.map((row) => row.ids.length));
  const tensor = (values, fill) => {
    const padded = rows.flatMap((row) => [...values(row), ...Array(width - row.ids.length).fill(fill)]);
    return new Tensor('int64', BigInt64Array.from(padded, BigInt), [rows.length, width]);
  };
  return {
    input_ids: tensor((row) => row.ids, pad),
    attention_mask: tensor((row) => row.ids.map(() => 1), 0),
    token_type_ids: tensor((row) => row.segments, 0),
  };
}
