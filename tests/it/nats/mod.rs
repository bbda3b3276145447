//! NATS servers.

mod servers;
