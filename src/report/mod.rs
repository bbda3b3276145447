//! How plans, results and errors read, for people. No decisions here.

mod text;

pub use text::{ago, bytes, count, duration, instant, list, printable, seconds, time};
