"""A stand-in ComfyUI: the same HTTP, WebSocket, validation and errors, and clips drawn on a CPU."""
