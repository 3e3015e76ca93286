"""What a training will need before it is started: memory, time, money. Nothing here needs a GPU or DeepSpeed."""
