"""Who runs network programs: `eager` as they are written, others compiled or together."""
