//! Servers and helpers that tests share.

pub(crate) mod s3;
