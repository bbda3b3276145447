//! Rows into tables, by several connections.
//!
//! Tables come largest first, each loaded by one connection, part after part. Who has no table left helps with the one that has most before
//! it, and takes its next parts: so rows come to lie near those that were beside them, which indexes like BRIN live on.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{SinkExt, StreamExt, future::try_join_all};
use tokio_postgres::CopyInSink;

use super::{
    build::{Build, TableBuild},
    connect::{Server, Session},
    error::{PostgresError, query},
};
use crate::{
    pipeline::{BINARY_HEAD, BINARY_TAIL, Format, PartRef, PipelineError, Progress, SnapshotReader},
    repository::Trust,
    source::SourceError,
};

/// Bytes given to a COPY at once: what waits in the connection's buffer is outside of the memory budget.
const COPY_SLICE: usize = 256 * 1024;
/// Bytes that one COPY of a large table loads, about.
const AT_A_TIME: u64 = 48 * 1024 * 1024;

/// A table on its way.
struct Loading<'a> {
    table: &'a TableBuild,
    /// What nobody has begun to load, each loaded by one COPY.
    waiting: VecDeque<Vec<PartRef>>,
    begun: bool,
    /// COPYs that are under way.
    running: usize,
    /// Rows that the server took.
    rows: u64,
}

/// Loads every table of a build and checks how many rows the server took of each.
pub(super) async fn all(server: &Server, snapshot: &SnapshotReader, build: &Build) -> Result<(), SourceError> {
    let tables = build.tables.iter().map(|table| Loading {
        table,
        waiting: copies(table.parts()),
        begun: false,
        running: 0,
        rows: 0,
    });
    let tables: Mutex<Vec<Loading<'_>>> = Mutex::new(tables.filter(|one| !one.waiting.is_empty()).collect());
    let next = |last: Option<usize>| {
        let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
        let own = last.filter(|n| !tables[*n].waiting.is_empty());
        let left = |n: &usize| tables[*n].waiting.iter().flatten().map(|part| part.raw).sum::<u64>();
        let n = own
            .or_else(|| tables.iter().position(|table| !table.begun))
            .or_else(|| (0..tables.len()).filter(|n| !tables[*n].waiting.is_empty()).max_by_key(left))?;
        tables[n].begun = true;
        let parts = tables[n].waiting.pop_front()?;
        tables[n].running += 1;
        Some((n, tables[n].table, parts))
    };
    let loaded = |n: usize, rows: u64| {
        let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
        let one = &mut tables[n];
        one.rows += rows;
        one.running -= 1;
        let is_whole = one.running == 0 && one.waiting.is_empty();
        is_whole.then_some((one.table, one.rows))
    };
    let worker = async || {
        let Some(mut task) = next(None) else { return Ok(()) };
        let session = server.connect_for_rows(&build.temporary, &build.detail().row_settings).await?;
        // The whole database is thrown away if anything fails; the renaming at the end is what must be durable.
        let fast = session.batch_execute("SET synchronous_commit = off").await;
        fast.map_err(query("setting up a session that loads rows"))?;
        loop {
            let (n, table, parts) = task;
            let rows = load(&session, snapshot, table, parts).await?;
            Progress::add(&snapshot.progress().rows, rows);
            if let Some((table, took)) = loaded(n, rows)
                && took != table.rows()
            {
                let difference = format!("{} took {took} rows of {}", table.shown(), table.rows());
                return Err(PostgresError::Differs { differences: vec![difference], total: 1 }.into());
            }
            match next(Some(n)) {
                Some(following) => task = following,
                None => return Ok::<_, SourceError>(()),
            }
        }
    };
    try_join_all((0..server.config.workers).map(|_| worker())).await?;
    Ok(())
}

/// The parts that one COPY loads each: several, and all that a row goes on in.
fn copies(parts: &[PartRef]) -> VecDeque<Vec<PartRef>> {
    let mut copies = VecDeque::new();
    let (mut open, mut bytes) = (Vec::new(), 0);
    for part in parts {
        bytes += part.raw;
        open.push(part.clone());
        if bytes >= AT_A_TIME && !part.continues {
            copies.push_back(std::mem::take(&mut open));
            bytes = 0;
        }
    }
    if !open.is_empty() {
        copies.push_back(open);
    }
    copies
}

/// Loads these parts by one COPY. Returns how many rows the server took.
async fn load(
    session: &Session,
    snapshot: &SnapshotReader,
    table: &TableBuild,
    parts: Vec<PartRef>,
) -> Result<u64, SourceError> {
    let failed = || query(format!("loading {}", table.shown()));
    if table.is_configuration() {
        // Its foreign keys are there already, and who may not set this has to do with the order of sizes.
        let without_triggers = session.batch_execute("SET session_replication_role = replica").await;
        if let Err(error) = without_triggers {
            tracing::debug!("loading {} with its triggers: {error}", table.shown());
        }
    }
    let sink = session.copy_in(table.copy_in()).await.map_err(failed())?;
    let mut sink = std::pin::pin!(sink);
    let is_binary = table.format() == Format::CopyBinary;
    let mut frames = Frames::default();
    let continues: Vec<bool> = parts.iter().map(|part| part.continues).collect();
    let mut plain = std::pin::pin!(snapshot.open_parts(parts));
    let mut continues = continues.into_iter();
    while let Some(part) = plain.next().await {
        let part = part?;
        let (bytes, goes_on) = (Bytes::clone(&part), continues.next().unwrap_or_default());
        let rows = if is_binary { frames.strip(bytes, goes_on, table.path())? } else { bytes };
        send(sink.as_mut(), rows, snapshot.progress()).await.map_err(failed())?;
    }
    if is_binary {
        sink.send(Bytes::from_static(BINARY_TAIL)).await.map_err(failed())?;
    }
    let rows = sink.finish().await.map_err(failed())?;
    if table.is_configuration() {
        session.batch_execute("RESET session_replication_role").await.map_err(failed())?;
    }
    Ok(rows)
}

/// Makes one binary file of several: the first one's header stays, the trailers go.
#[derive(Default)]
struct Frames {
    has_begun: bool,
    /// The part goes on with a row of the one before, and has no header.
    within_row: bool,
}

impl Frames {
    fn strip(&mut self, mut bytes: Bytes, goes_on: bool, path: &str) -> Result<Bytes, PipelineError> {
        let damaged = || PipelineError::from(Trust::damaged(path, "has a part that is no binary COPY"));
        if !self.within_row {
            if !bytes.starts_with(BINARY_HEAD) {
                return Err(damaged());
            }
            if std::mem::replace(&mut self.has_begun, true) {
                let _ = bytes.split_to(BINARY_HEAD.len());
            }
        }
        self.within_row = goes_on;
        if !goes_on {
            if !bytes.ends_with(BINARY_TAIL) {
                return Err(damaged());
            }
            bytes.truncate(bytes.len() - BINARY_TAIL.len());
        }
        Ok(bytes)
    }
}

/// Gives a COPY some of its rows.
pub(super) async fn send(
    mut sink: Pin<&mut CopyInSink<Bytes>>,
    mut rows: Bytes,
    progress: &Progress,
) -> Result<(), tokio_postgres::Error> {
    while !rows.is_empty() {
        let slice = rows.split_to(rows.len().min(COPY_SLICE));
        Progress::add(&progress.raw, slice.len() as u64);
        sink.send(slice).await?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn several_binary_parts_make_one_file() {
        let part = |head: bool, rows: &str, tail: bool| {
            let (head, tail) = (if head { BINARY_HEAD } else { b"" }, if tail { BINARY_TAIL } else { b"" });
            Bytes::from([head, rows.as_bytes(), tail].concat())
        };
        let mut frames = Frames::default();
        let mut joined = Vec::new();
        for (head, rows, goes_on) in
            [(true, "a", false), (true, "b", true), (false, "c", true), (false, "d", false), (true, "e", false)]
        {
            joined.extend(frames.strip(part(head, rows, !goes_on), goes_on, "p").unwrap());
        }
        assert_eq!(joined, [BINARY_HEAD, b"abcde"].concat());
        for (head, goes_on, tail) in [(false, false, true), (true, false, false)] {
            assert!(Frames::default().strip(part(head, "x", tail), goes_on, "p").is_err());
        }
    }
}
