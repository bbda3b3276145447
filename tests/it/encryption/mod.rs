//! Encrypted repositories: which machine can do what, what a forger with public keys and a store to write to achieves, and
//! what happens when keys change.

mod at_once;
mod forged_epochs;
mod forged_objects;
mod forger;
mod keys;
mod machines;
mod people;
mod rotation;
