"""From a parsed record to the bytes of its tokens and of its loss mask: row forms, chat templates, label rules."""
