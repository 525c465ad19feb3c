"""The model application: a CSV pipeline that survives any crash. README.md beside this file is the way in."""
