"""Plain forward passes of a Hugging Face model, for those who want its inner numbers and no answers: no engine, no Ray."""
