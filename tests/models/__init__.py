"""Models as people write them, compiled and compared with themselves uncompiled."""
