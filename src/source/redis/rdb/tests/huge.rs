//! huge
