"""The only folder that touches wasmtime: modules, live guests, and what they import.

binary      reading and rewriting a module's sections, without compiling it
capi        the wasmtime C API, as far as it is used
engine      the process-wide engine, its settings and its epoch ticker
cache       compiled code on the local disk
module      a checked, compiled module, ready to be instantiated
live        one guest: enter it, park it, wake it, read and restore its memory
imports     how a host function is called from wasm, so that nothing is ever raised through it
wasi        WASI preview 1, virtual
abi_v0      module "env", what guests of the original wasman import
"""
