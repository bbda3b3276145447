//! Deadlines, retries and whole bodies over a [`Backend`].
//!
//! Invariants: no await on a backend without a deadline; what is not transient is tried once; a body is accepted only at
//! exactly the size the store announced; a write whose outcome is unknown is settled by reading the object back, never by
//! guessing (rule R1). A caller cancels by dropping the future.
//!
//! This module must not know what kind of store it talks to.

use std::{collections::HashSet, future::Future, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    Backend, MAX_OBJECT, ObjectInfo, PutMode, SharedBackend, StoreError, StoreErrorKind,
    key::{check_key, check_prefix},
};

/// How long one attempt may take, and how many there are.
///
/// The default is six attempts with waits of about 0.2, 0.4, 0.8, 1.6 and 3.2 s between them: it outlasts a restarting
/// gateway and a burst of `SlowDown`, and a store that is down for longer is reported within half a minute.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Attempts at one call, the first included; at least 1. Default 6.
    pub attempts: u32,
    /// Wait after the first failed attempt; doubled after each further one, with jitter. Default 200 ms.
    pub first_wait: Duration,
    /// The longest wait between two attempts. Default 10 s.
    pub max_wait: Duration,
    /// Deadline of one attempt at a small call (head, list page, delete, clock). Default 30 s.
    pub call_timeout: Duration,
    /// Deadline of one attempt at moving a body of up to 64 MiB. Default 300 s: 64 MiB at about 220 KiB/s.
    pub body_timeout: Duration,
    /// How long a body may stand still before the attempt counts as broken. Default 60 s, which slow disks behind an S3
    /// gateway are known to need (the SDK's own 5 to 20 s broke uploads: awslabs/aws-sdk-rust#1146).
    pub stall_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_wait: Duration::from_millis(200),
            max_wait: Duration::from_secs(10),
            call_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(300),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// The wait after failed attempt number `attempt` (1 is the first), for a random `share` in 0..1.
    ///
    /// Half of it is fixed, half random, so that many writers that were turned away together do not come back together.
    fn wait(&self, attempt: u32, share: f64) -> Duration {
        let doubled = self.first_wait.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.max_wait).mul_f64(0.5 + share.clamp(0.0, 1.0) / 2.0)
    }
}

/// A store as the rest of the program sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    backend: SharedBackend,
    policy: Arc<RetryPolicy>,
}

/// What reading an object back said about a write.
enum Settled {
    /// The object is there with the very bytes.
    Ours,
    /// The object is there with other bytes.
    Theirs,
    /// There is no object.
    Absent,
}

/// What is known about the object of a write when the next attempt begins.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// No earlier attempt can have written it.
    Clean,
    /// An earlier attempt may have written it.
    Unknown,
}

/// How a write goes on after an attempt without an answer.
enum Next {
    /// It is done.
    Done,
    /// It is not; this is the number of the next attempt.
    Attempt(u32),
}

/// A body as far as it has come.
#[derive(Default)]
struct Partial {
    size: u64,
    tag: String,
    bytes: BytesMut,
}

impl Store {
    /// Puts deadlines and retries over a backend.
    pub fn new(backend: Arc<dyn Backend>, policy: RetryPolicy) -> Self {
        Self { backend, policy: Arc::new(policy) }
    }

    /// The repository's address as a person writes it, without secrets.
    pub fn url(&self) -> &str {
        self.backend.url()
    }

    /// Writes an object whose key is unique by construction (rule R2), at most [`MAX_OBJECT`] bytes.
    ///
    /// An attempt whose outcome is unknown is settled by reading the object back. `AlreadyExists` says that something
    /// else is under the key.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.write(key, body, PutMode::Unique).await
    }

    /// Creates an object; `AlreadyExists` where the key is taken.
    ///
    /// Only when an earlier attempt of this very call may have written it is a taken key looked into: the same bytes are
    /// then ours. A caller whose bytes are unique (a random id is in them) therefore knows that it won.
    pub async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.write(key, body, PutMode::CreateOnly).await
    }

    /// Reads one object whole: exactly as many bytes as the store announced, of one version of it.
    ///
    /// A body that breaks or stands still is continued where it broke while the object stays the same.
    /// Errors: `NotFound`; `TooLarge` above [`MAX_OBJECT`]; `Truncated` where it never came whole.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.get_at_most(key, MAX_OBJECT).await
    }

    /// Like [`Store::get`]; `TooLarge` above `most` bytes, of which none is then read.
    pub async fn get_at_most(&self, key: &str, most: u64) -> Result<Bytes, StoreError> {
        check_key("get", key)?;
        let mut partial = Partial::default();
        let mut attempt = 1;
        loop {
            match self.read_on(key, most, &mut partial).await {
                Ok(()) => return Ok(partial.bytes.freeze()),
                Err(error) => self.pause_or_give_up(error, attempt).await?,
            }
            attempt += 1;
        }
    }

    /// Size and time of one object.
    pub async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        check_key("head", key)?;
        self.small_call("head", key, || self.backend.head(key)).await
    }

    /// Hands every object below `prefix` to `each`; an error where the listing could not be completed, and then what
    /// `each` was given so far is not a listing.
    pub async fn list(&self, prefix: &str, each: &mut (dyn FnMut(ObjectInfo) + Send)) -> Result<(), StoreError> {
        self.pages(prefix, false, &mut |page| page.objects.into_iter().for_each(&mut *each)).await
    }

    /// The names (last segment only) of the folders right below `prefix`, sorted.
    pub async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut dirs = Vec::new();
        self.pages(prefix, true, &mut |page| dirs.extend(page.dirs)).await?;
        let mut names = Vec::with_capacity(dirs.len());
        for dir in dirs {
            match dir.strip_prefix(prefix) {
                Some(name) if !name.is_empty() && !name.contains('/') => names.push(name.to_owned()),
                _ => {
                    let detail = format!("the store listed {dir:?}, which is not a folder right below the prefix");
                    return Err(self.error(StoreErrorKind::Other, "list", prefix, detail));
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Removes one object; fine where there is none.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key("delete", key)?;
        self.small_call("delete", key, || self.backend.delete(key)).await
    }

    /// The store's own clock.
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        self.small_call("clock", "", || self.backend.now()).await
    }

    /// A call without a body: a deadline on each attempt, and further attempts while the failure is transient.
    async fn small_call<T, F>(&self, op: &'static str, key: &str, call: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut attempt = 1;
        loop {
            // The folder store lists a whole folder in one call: as slow as its disk.
            let deadline = if op == "list" { self.policy.body_timeout } else { self.policy.call_timeout };
            match self.within(deadline, op, key, call()).await {
                Ok(value) => return Ok(value),
                Err(error) => self.pause_or_give_up(error, attempt).await?,
            }
            attempt += 1;
        }
    }

    /// All pages of a listing, each with its own retries.
    async fn pages(
        &self,
        prefix: &str,
        dirs_only: bool,
        each: &mut (dyn FnMut(super::Page) + Send),
    ) -> Result<(), StoreError> {
        check_prefix(prefix)?;
        let mut seen = HashSet::new();
        let mut from: Option<String> = None;
        loop {
            let page =
                self.small_call("list", prefix, || self.backend.list_page(prefix, dirs_only, from.as_deref())).await?;
            let next = page.next.clone();
            each(page);
            let Some(token) = next else { return Ok(()) };
            if !seen.insert(token.clone()) {
                let detail = "the store sent the same continuation token twice; the listing would never end";
                return Err(self.error(StoreErrorKind::Other, "list", prefix, detail));
            }
            from = Some(token);
        }
    }

    async fn write(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        check_key("put", key)?;
        if body.len() as u64 > MAX_OBJECT {
            let detail = format!("{} bytes are more than the {MAX_OBJECT} an object may have", body.len());
            return Err(self.error(StoreErrorKind::TooLarge, "put", key, detail));
        }
        let mut outcome = Outcome::Clean;
        let mut attempt = 1;
        loop {
            let put = self.backend.put(key, body.clone(), mode);
            let error = match self.within(self.policy.body_timeout, "put", key, put).await {
                Ok(()) => return Ok(()),
                // Taken, and not by an earlier attempt of ours: nothing to settle.
                Err(error) if error.kind == StoreErrorKind::AlreadyExists && outcome == Outcome::Clean => {
                    return Err(error);
                }
                Err(error) if error.is_transient() || error.kind == StoreErrorKind::AlreadyExists => error,
                // A refusal after an attempt that may have written: what stands in the store still decides.
                Err(error) if outcome == Outcome::Unknown => {
                    return match self.settle(key, &body).await {
                        Ok(Settled::Ours) => Ok(()),
                        _ => Err(StoreError { attempts: attempt, ..error }),
                    };
                }
                Err(error) => return Err(error),
            };
            outcome = Outcome::Unknown;
            match self.after_unknown(key, &body, error, attempt).await? {
                Next::Done => return Ok(()),
                Next::Attempt(number) => attempt = number,
            }
        }
    }

    /// Reads back until it is known what the failed attempt left behind, and says how to go on. A look that fails for a
    /// passing reason costs an attempt too, so that a store that is down is given up in the same time.
    async fn after_unknown(
        &self,
        key: &str,
        body: &Bytes,
        error: StoreError,
        mut attempt: u32,
    ) -> Result<Next, StoreError> {
        loop {
            // The wait comes first: what made the write fail would often make the look fail too.
            sleep(self.policy.wait(attempt, rand::random())).await;
            match self.settle(key, body).await {
                Ok(Settled::Ours) => {
                    tracing::info!(key, attempt, "a write without an answer was found done");
                    return Ok(Next::Done);
                }
                Ok(Settled::Theirs) => {
                    let detail = "an object with other content is under the key";
                    let taken = self.error(StoreErrorKind::AlreadyExists, "put", key, detail);
                    return Err(StoreError { attempts: attempt, ..taken });
                }
                Ok(Settled::Absent) if attempt < self.policy.attempts => {
                    self.tell(&error, attempt);
                    return Ok(Next::Attempt(attempt + 1));
                }
                Ok(Settled::Absent) => return Err(StoreError { attempts: attempt, ..error }),
                Err(look) if look.is_transient() && attempt < self.policy.attempts => {
                    self.tell(&look, attempt);
                    attempt += 1;
                }
                Err(look) => {
                    let detail = format!(
                        "{}; whether it was written is unknown, reading it back failed: {}",
                        error.detail, look.detail
                    );
                    return Err(StoreError { attempts: attempt, detail, ..error });
                }
            }
        }
    }

    /// One look at what is under `key`.
    async fn settle(&self, key: &str, body: &Bytes) -> Result<Settled, StoreError> {
        let mut partial = Partial::default();
        match self.read_on(key, MAX_OBJECT, &mut partial).await {
            Ok(()) if partial.bytes == body => Ok(Settled::Ours),
            Ok(()) => Ok(Settled::Theirs),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(Settled::Absent),
            Err(error) if error.kind == StoreErrorKind::TooLarge => Ok(Settled::Theirs),
            Err(error) => Err(error),
        }
    }

    /// One attempt at the rest of a body. On an error `partial` holds what may be continued, or nothing.
    async fn read_on(&self, key: &str, most: u64, partial: &mut Partial) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.policy.body_timeout;
        let offset = partial.bytes.len() as u64;
        let opening = self.within(self.policy.call_timeout, "get", key, self.backend.get(key, offset)).await;
        let mut object = match opening {
            Ok(object) => object,
            Err(error) => {
                // Where the range was refused the object is another one by now; the next attempt begins anew.
                if error.kind == StoreErrorKind::Truncated {
                    *partial = Partial::default();
                }
                return Err(error);
            }
        };
        if object.size > most {
            let detail = format!("{} bytes are more than the {most} it may have", object.size);
            return Err(self.error(StoreErrorKind::TooLarge, "get", key, detail));
        }
        if offset > 0 && (object.tag.is_empty() || object.tag != partial.tag || object.size != partial.size) {
            *partial = Partial::default();
            return Err(self.error(StoreErrorKind::Truncated, "get", key, "the object changed while it was read"));
        }
        if offset == 0 {
            partial.size = object.size;
            partial.tag = std::mem::take(&mut object.tag);
            partial.bytes.reserve(usize::try_from(object.size).unwrap_or_default());
        }
        loop {
            let until = deadline.min(Instant::now() + self.policy.stall_timeout);
            let chunk = match timeout_at(until, object.body.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Err(partial.broken(error)),
                Err(_) => {
                    let detail = format!("the body stood still at {} of {} bytes", partial.bytes.len(), partial.size);
                    return Err(partial.broken(self.error(StoreErrorKind::TimedOut, "get", key, detail)));
                }
            };
            if (partial.bytes.len() + chunk.len()) as u64 > partial.size {
                let detail = format!("the body is longer than the announced {} bytes", partial.size);
                // What came before the surplus is not to be believed either.
                *partial = Partial::default();
                return Err(self.error(StoreErrorKind::Truncated, "get", key, detail));
            }
            partial.bytes.extend_from_slice(&chunk);
        }
        if partial.bytes.len() as u64 != partial.size {
            let detail = format!("the body ended after {} of {} bytes", partial.bytes.len(), partial.size);
            return Err(self.error(StoreErrorKind::Truncated, "get", key, detail));
        }
        Ok(())
    }

    /// Waits for the next attempt, or hands the error back when there is none.
    async fn pause_or_give_up(&self, error: StoreError, attempt: u32) -> Result<(), StoreError> {
        if !error.is_transient() || attempt >= self.policy.attempts {
            return Err(StoreError { attempts: attempt, ..error });
        }
        self.tell(&error, attempt);
        sleep(self.policy.wait(attempt, rand::random())).await;
        Ok(())
    }

    /// Logs a failed attempt after which another one follows. One failure is everyday, two in a row are worth a look.
    fn tell(&self, error: &StoreError, attempt: u32) {
        if attempt > 1 {
            tracing::warn!(attempt, of = self.policy.attempts, "{error}; trying again");
        } else {
            tracing::info!(attempt, of = self.policy.attempts, "{error}; trying again");
        }
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        op: &'static str,
        key: &str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout(deadline, call).await {
            Ok(result) => result,
            Err(_) => {
                let detail = format!("no answer within {} s", deadline.as_secs_f64());
                Err(self.error(StoreErrorKind::TimedOut, op, key, detail))
            }
        }
    }

    fn error(&self, kind: StoreErrorKind, op: &'static str, key: &str, detail: impl Into<String>) -> StoreError {
        StoreError::new(kind, op, format!("{}/{key}", self.backend.url().trim_end_matches('/')), detail)
    }
}

impl Partial {
    /// Makes the next attempt continue where this one broke, or begin anew when nothing is left to ask for: a stream that
    /// fails after its last byte (a checksum that does not hold) has failed.
    fn broken(&mut self, error: StoreError) -> StoreError {
        if self.bytes.len() as u64 >= self.size {
            *self = Partial::default();
        }
        error
    }
}

#[cfg(test)]
mod tests;
