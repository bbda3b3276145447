//! Redis.

pub mod rdb;
