"""The engine of wasman: durable instances of WebAssembly modules. It knows nothing of the SDK above it."""
