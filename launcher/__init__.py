"""From any training file to a running trainer. Never imports torch, accelerate, diffusers, transformers or peft."""
