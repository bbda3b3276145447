//! Tests against real servers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod store;
mod support;
