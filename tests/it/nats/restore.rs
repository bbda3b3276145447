//! What a restore does to its target, and what it refuses to do.
