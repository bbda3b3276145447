//! The tests that run against real servers: PostgreSQL, Redis, NATS and S3 servers that they start, fill and
//! remove themselves.
//!
//! `scripts/tools` installs what they need; `scripts/test` calls it first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed, and the panic says where"
)]

mod alerts;
mod by_hand;
mod cluster;
mod damage;
mod encryption;
mod failures;
mod fidelity;
mod fixture;
mod given;
mod harness;
mod kill;
mod large_objects;
mod memory;
mod nats;
mod overwrite;
mod prune;
mod ranges;
mod recovery_point;
mod redis;
mod roundtrip;
mod secrecy;
mod serve;
mod store;
mod support;
mod tls;
mod under_load;
mod verify;
