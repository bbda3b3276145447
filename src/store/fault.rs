//! Faults on demand, for tests: a backend around another one that follows a script.
//!
//! A script says at which call of which operation what goes wrong; every other call passes through. It also counts calls
//! and remembers the keys that were written, so that a test can say how often something was tried.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;

use super::{Backend, ObjectBody, ObjectInfo, Page, PutMode, SharedBackend, StoreError, StoreErrorKind};

/// What can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// [`Backend::put`], in either mode.
    Put,
    /// [`Backend::get`].
    Get,
    /// [`Backend::head`].
    Head,
    /// [`Backend::list_page`].
    List,
    /// [`Backend::delete`].
    Delete,
    /// [`Backend::now`].
    Clock,
}

/// What goes wrong. A fault that does not fit the operation (a cut body of a `head`) does nothing.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing is done and the call fails so; `Busy` is a server's 503.
    Fail(StoreErrorKind),
    /// The call waits, then passes through.
    Late(Duration),
    /// The call is done, and then fails so: the answer was lost.
    LoseAnswer(StoreErrorKind),
    /// A write or delete answers success and does nothing: a store that lies.
    LoseWrite,
    /// The body ends after so many bytes, without an error.
    CutBody(u64),
    /// The body fails after so many bytes.
    BreakBody(u64),
    /// The body never goes on after so many bytes.
    StallBody(u64),
    /// The body has one byte more at its end than announced.
    GrowBody,
    /// The object answers under another tag, as if it had been replaced.
    OtherTag,
    /// A page of a listing says that the next one begins here.
    NextPage(String),
}

#[derive(Debug)]
struct Rule {
    op: Option<Op>,
    /// Which call, 1 the first; none for all.
    nth: Option<usize>,
    fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    calls: Vec<Op>,
    written: Vec<String>,
}

/// A backend that fails as its script says.
#[derive(Debug)]
pub struct FaultBackend {
    inner: SharedBackend,
    state: Mutex<State>,
}

impl FaultBackend {
    /// Everything passes through, until [`on`](Self::on) or [`always`](Self::always) says otherwise.
    pub fn new(inner: SharedBackend) -> FaultBackend {
        FaultBackend { inner, state: Mutex::default() }
    }

    /// `fault` at the `nth` call of `op` (1 is the first since the start), or of any operation where `op` is none.
    /// Where several rules fit one call, the first one given counts.
    pub fn on(&self, op: impl Into<Option<Op>>, nth: usize, fault: Fault) -> &Self {
        self.state().rules.push(Rule { op: op.into(), nth: Some(nth), fault });
        self
    }

    /// `fault` at every call of `op`, or of any operation where `op` is none.
    pub fn always(&self, op: impl Into<Option<Op>>, fault: Fault) -> &Self {
        self.state().rules.push(Rule { op: op.into(), nth: None, fault });
        self
    }

    /// Forgets the script; counts and keys stay.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Calls so far of `op`, or of all operations.
    pub fn calls(&self, op: impl Into<Option<Op>>) -> usize {
        let op = op.into();
        self.state().calls.iter().filter(|called| op.is_none_or(|op| op == **called)).count()
    }

    /// The keys of the writes that the backend below answered with success, in their order.
    pub fn written(&self) -> Vec<String> {
        self.state().written.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and applies what comes before it. Gives the fault that is left to apply.
    async fn enter(&self, op: Op, key: &str) -> Result<Option<Fault>, StoreError> {
        let fault = {
            let mut state = self.state();
            state.calls.push(op);
            let of_op = state.calls.iter().filter(|called| **called == op).count();
            let of_all = state.calls.len();
            let fits = |rule: &&Rule| match rule.op {
                Some(wanted) => wanted == op && rule.nth.is_none_or(|nth| nth == of_op),
                None => rule.nth.is_none_or(|nth| nth == of_all),
            };
            state.rules.iter().find(fits).map(|rule| rule.fault.clone())
        };
        match fault {
            Some(Fault::Fail(kind)) => Err(self.error(kind, op, key, "made to fail")),
            Some(Fault::Late(wait)) => {
                tokio::time::sleep(wait).await;
                Ok(None)
            }
            other => Ok(other),
        }
    }

    /// Applies what comes after a call that was done.
    fn leave<T>(&self, op: Op, key: &str, fault: Option<&Fault>, value: T) -> Result<T, StoreError> {
        match fault {
            Some(Fault::LoseAnswer(kind)) => {
                Err(self.error(*kind, op, key, "done, but the answer was made to get lost"))
            }
            _ => Ok(value),
        }
    }

    fn error(&self, kind: StoreErrorKind, op: Op, key: &str, detail: &str) -> StoreError {
        let name = match op {
            Op::Put => "put",
            Op::Get => "get",
            Op::Head => "head",
            Op::List => "list",
            Op::Delete => "delete",
            Op::Clock => "clock",
        };
        StoreError::new(kind, name, format!("{}/{key}", self.inner.url()), detail)
    }
}

#[async_trait]
impl Backend for FaultBackend {
    fn url(&self) -> &str {
        self.inner.url()
    }

    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let fault = self.enter(Op::Put, key).await?;
        if matches!(fault, Some(Fault::LoseWrite)) {
            return Ok(());
        }
        self.inner.put(key, body, mode).await?;
        self.state().written.push(key.to_owned());
        self.leave(Op::Put, key, fault.as_ref(), ())
    }

    async fn get(&self, key: &str, offset: u64) -> Result<ObjectBody, StoreError> {
        let fault = self.enter(Op::Get, key).await?;
        let mut object = self.inner.get(key, offset).await?;
        match &fault {
            Some(Fault::CutBody(after)) => object.body = first_bytes(object.body, *after).boxed(),
            Some(Fault::BreakBody(after)) => {
                let error = self.error(StoreErrorKind::Truncated, Op::Get, key, "made to break");
                object.body = first_bytes(object.body, *after).chain(stream::iter([Err(error)])).boxed();
            }
            Some(Fault::StallBody(after)) => {
                object.body = first_bytes(object.body, *after).chain(stream::pending()).boxed();
            }
            Some(Fault::GrowBody) => {
                object.body = object.body.chain(stream::iter([Ok(Bytes::from_static(b"!"))])).boxed();
            }
            Some(Fault::OtherTag) => object.tag.push_str("-other"),
            _ => {}
        }
        self.leave(Op::Get, key, fault.as_ref(), object)
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        let fault = self.enter(Op::Head, key).await?;
        let info = self.inner.head(key).await?;
        self.leave(Op::Head, key, fault.as_ref(), info)
    }

    async fn list_page(&self, prefix: &str, dirs_only: bool, from: Option<&str>) -> Result<Page, StoreError> {
        let fault = self.enter(Op::List, prefix).await?;
        let mut page = self.inner.list_page(prefix, dirs_only, from).await?;
        if let Some(Fault::NextPage(token)) = &fault {
            page.next = Some(token.clone());
        }
        self.leave(Op::List, prefix, fault.as_ref(), page)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let fault = self.enter(Op::Delete, key).await?;
        if matches!(fault, Some(Fault::LoseWrite)) {
            return Ok(());
        }
        self.inner.delete(key).await?;
        self.leave(Op::Delete, key, fault.as_ref(), ())
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        let fault = self.enter(Op::Clock, "").await?;
        let now = self.inner.now().await?;
        self.leave(Op::Clock, "", fault.as_ref(), now)
    }
}

type Body = stream::BoxStream<'static, Result<Bytes, StoreError>>;

/// The first `limit` bytes of a body, after which it ends.
fn first_bytes(body: Body, limit: u64) -> Body {
    body.scan(limit, |left, piece| {
        let piece = piece.map(|mut bytes| {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
            bytes
        });
        futures::future::ready(Some(piece))
    })
    // A piece that was cut to nothing is no piece.
    .filter(|piece| futures::future::ready(!matches!(piece, Ok(bytes) if bytes.is_empty())))
    .boxed()
}
