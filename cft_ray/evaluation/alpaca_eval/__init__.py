"""AlpacaEval: a model's answers to 805 instructions, compared with reference answers by a judge.

Prompts, parsers and the mathematics of win rates are the alpaca-eval package's. What asks the judge is ours, because the
package keeps annotations only when all are there, retries rate limits alone, and takes its key and address from
process-wide settings: `endpoint` asks an OpenAI-compatible server, `local` a model in a vLLM engine of this process, and
`annotations` keeps each judgement as it comes.
"""
