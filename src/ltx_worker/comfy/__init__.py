"""ComfyUI as a server: its HTTP surface, its events, one prompt's execution, its process."""
