// Answers texts with Transformers.js from a folder on this machine; a request and its answer are JSON on stdin and stdout.
//
//   {"models": "parent folder", "model": "folder", "dtype": "fp32" | "q8", "how": ..., "batch": 7,
//    "texts": [...], "pairs": [...] | null}
//
// how       answer
// pipeline  the text-classification pipeline: [[{label, score}, ...], ...]
// model     the tokenizer as it is, and the model: {logits, labels}
// cut       encode.mjs and the model: {logits, labels}
// web       encode.mjs, and the WebAssembly runtime that browsers have: {logits}
import { readFileSync } from 'node:fs';
import { AutoModelForSequenceClassification, AutoTokenizer, env, pipeline } from '@huggingface/transformers';
import * as web from 'onnxruntime-web';
import { encode } from './encode.mjs';

const FILES = { fp32: 'model.onnx', q8: 'model_quantized.onnx' };

function* batches({ texts, pairs, batch }) {
  for (let at = 0; at < texts.length; at += batch) {
    yield [texts.slice(at, at + batch), pairs && pairs.slice(at, at + batch)];
  }
}

async function throughPipeline(request) {
  const classify = await pipeline('text-classification', request.model, { dtype: request.dtype });
  const answers = [];
  for (const [texts] of batches(request)) answers.push(...(await classify(texts, { top_k: null })));
  return answers;
}

async function logitsOf(request, inputsOf, answer) {
  const tokenizer = await AutoTokenizer.from_pretrained(request.model);
  const logits = [];
  for (const [texts, pairs] of batches(request)) logits.push(...(await answer(inputsOf(tokenizer, texts, pairs))));
  return logits;
}

async function throughModel(request, inputsOf) {
  const model = await AutoModelForSequenceClassification.from_pretrained(request.model, { dtype: request.dtype });
  const logits = await logitsOf(request, inputsOf, async (inputs) => (await model(inputs)).logits.tolist());
  return { logits, labels: model.config.id2label };
}

async function throughWeb(request) {
  web.env.wasm.numThreads = 1;
  const file = `${request.models}/${request.model}/onnx/${FILES[request.dtype]}`;
  const session = await web.InferenceSession.create(readFileSync(file));
  const answer = async (inputs) => {
    const feeds = Object.entries(inputs).map(([name, one]) => [name, new web.Tensor('int64', one.data, one.dims)]);
    const { data, dims } = (await session.run(Object.fromEntries(feeds))).logits;
    return Array.from({ length: dims[0] }, (_, i) => Array.from(data.slice(i * dims[1], (i + 1) * dims[1])));
  };
  return { logits: await logitsOf(request, encode, answer) };
}

const asItIs = (tokenizer, texts, text_pair) => tokenizer(texts, { text_pair, padding: true, truncation: true });
const HOW = {
  pipeline: throughPipeline,
  model: (request) => throughModel(request, asItIs),
  cut: (request) => throughModel(request, encode),
  web: throughWeb,
};
const request = JSON.parse(readFileSync(0, 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = request.models;
console.log(JSON.stringify(await HOW[request.how](request)));
