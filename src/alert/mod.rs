//! Who is told when something is wrong, what, and when: each change once, from one-shot runs and from the daemon alike.
//!
//! [`conditions`] decides from the repository alone what is wrong. What was told is kept in the repository, too ([`AlertJournal`]): a change
//! is written down before it is told, so that of several runs one tells it, and what could not be told is told by the next run or tick. Where
//! the repository cannot be read there is no such memory: then a one-shot run tells of it every time, and the daemon once.
//!
//! Receivers get at least one message of each change: one whose answer was lost is sent again, with the same words. Nothing here changes how
//! a command ends. No address of a receiver and no token is in any text.
//!
//! [`AlertJournal`]: crate::repository::AlertJournal

mod alertmanager;
mod conditions;
mod error;
mod message;
mod receiver;
mod round;
mod run;
mod watch;

pub use self::{
    conditions::{Condition, Expected, conditions, is_bad, limit},
    error::NotifyError,
    message::Message,
    run::{Run, after},
    watch::Watch,
};
