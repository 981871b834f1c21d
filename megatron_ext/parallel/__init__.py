"""Where each rank stands (`grid`) and the one place that starts process groups (`world`)."""
