"""How guests are built: compilers, their flags, the guest SDK that belongs to this package.

flags          how each compiler is called, for each form of guest
compilers      finds TinyGo and Go, and refuses those that build something else
sdk            the Go module that came with this package, and how a guest is made to use it
compiling      a folder of Go to a module
asyncify       a module of another language, so that it can be kept in the middle of a call
"""
