//! Throwaway servers that are given: only one that is nobody's is taken, whatever it is called, and it is left as it was found.

mod kill;
mod nats;
mod postgres;
mod redis;
mod whole;
