//! Backs up PostgreSQL to S3-compatible storage and proves that what it stored can be restored.

pub mod config;
pub mod store;
