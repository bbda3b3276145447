//! NATS JetStream 2.9 to 2.15.

pub mod archive;
pub mod ranges;
pub mod tally;
