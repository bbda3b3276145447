//! Backs up PostgreSQL, Redis and NATS JetStream to S3-compatible storage and proves that what it stored can be restored.
//!
//! Dependencies point downwards: [`cli`] → [`serve`] → [`operation`] → [`source`], [`repository`], [`pipeline`], [`scratch`] → [`store`]. A source and a
//! repository never meet but in an operation, through the pipeline.

pub mod alert;
pub mod cli;
pub mod config;
pub mod crypt;
pub mod operation;
pub mod pipeline;
pub mod report;
pub mod repository;
pub mod schedule;
pub mod scratch;
pub mod serve;
pub mod source;
pub mod store;
