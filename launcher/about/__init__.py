"""What an option means, what a LoRA file says, what two configs train differently."""
