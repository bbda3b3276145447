//! The rows of a database's tables, read by several connections in one snapshot.
//!
//! Tables come largest first. A large one is read as ranges of its heap's pages (TID ranges), each by one connection, which asks for some pages
//! at a time. Who has nothing left to do takes the half that is left of the largest range in hand. So nobody has to know beforehand how long what
//! takes, and there are few borders, which leave no trace in parts ([`RangeWriter::until_border`]): a range's reader goes on into the
//! next range until the pipeline has what it needs, and that range's reader leaves it out.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::{TryStreamExt, future::try_join_all};
use tokio::sync::Notify;
use tokio_postgres::error::SqlState;

use super::{
    capture::DatabaseDetail,
    catalog::{self, Relation, RelationKind},
    connect::{Server, Session},
    copy::{NO_PAGE, TableDetail},
    error::{PostgresError, query},
    sql,
};
use crate::{
    pipeline::{Format, Range, RangeWriter, SnapshotWriter},
    source::SourceError,
};

/// A table, or a range, is divided where each half has at least so many bytes.
const LEAST_RANGE: u64 = 32 * 1024 * 1024;
/// Bytes that are asked for at a time, about.
const AT_A_TIME: u64 = 32 * 1024 * 1024;
/// The same beyond a border, where most of it may not be needed.
const AT_A_TIME_BEYOND: u64 = 4 * 1024 * 1024;

/// What TID ranges need to be read as such, and in the order of the heap.
pub(super) const IN_HEAP_ORDER: &str =
    "SET enable_tidscan = on; SET enable_seqscan = off; SET max_parallel_workers_per_gather = 0; SET jit = off";

/// One database's rows on their way.
pub(super) struct Reading<'a> {
    server: &'a Server,
    database: &'a DatabaseDetail,
    into: &'a SnapshotWriter,
    work: Mutex<Work<'a>>,
    /// A table was begun.
    changed: Notify,
}

/// What is to be read.
#[derive(Default)]
struct Work<'a> {
    /// Tables that nobody has begun, largest first.
    waiting: VecDeque<&'a Relation>,
    /// Tables that somebody is about to begin.
    beginning: usize,
    /// Large tables in hand, by OID.
    open: BTreeMap<u32, Open<'a>>,
}

/// What a worker does next.
#[derive(Clone, Copy)]
enum Task<'a> {
    Begin(&'a Relation),
    /// Take half of what is left of it.
    Divide(&'a Relation),
    /// Somebody is about to begin a table, which may be one to divide.
    Wait,
    None,
}

impl<'a> Work<'a> {
    fn task(&mut self) -> Task<'a> {
        if let Some(table) = self.waiting.pop_front() {
            self.beginning += 1;
            return Task::Begin(table);
        }
        let halves = self.open.values().filter_map(|open| Some((open.table, open.half()?.2)));
        match halves.max_by_key(|(_, bytes)| *bytes) {
            Some((table, _)) => Task::Divide(table),
            None if self.beginning > 0 => Task::Wait,
            None => Task::None,
        }
    }

    fn begun(&mut self, table: &'a Relation, is_open: bool) {
        self.beginning -= 1;
        if is_open {
            self.open.insert(table.oid, Open::new(table));
        }
    }
}

/// A table in hand.
struct Open<'a> {
    table: &'a Relation,
    /// By the first page.
    ranges: BTreeMap<u32, TidRange>,
    /// No range may begin before this page: somebody who read on beyond a border has been here.
    passed: u32,
    /// Ranges that are being read.
    running: usize,
}

/// A range of a heap's pages.
struct TidRange {
    /// The first page that nobody has been given.
    next: u32,
    /// Where the next range begins, or [`NO_PAGE`].
    end: u32,
    read: Option<Range>,
}

/// What a range's reader does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Read up to this page.
    Read(u32),
    /// Here another range begins.
    Border,
    /// The table ends.
    End,
}

impl Open<'_> {
    fn new(table: &Relation) -> Open<'_> {
        let ranges = BTreeMap::from([(0, TidRange { next: 0, end: NO_PAGE, read: None })]);
        Open { table, ranges, passed: 0, running: 1 }
    }

    fn pages(&self, bytes: u64) -> u32 {
        let of_a_page = (self.table.size / u64::from(self.table.pages).max(1)).max(1);
        u32::try_from(bytes / of_a_page).unwrap_or(NO_PAGE).max(1)
    }

    /// What the reader of the range that began at `start` does, who has read up to `at` and was `told` of the border there.
    fn next(&mut self, start: u32, at: u32, told: Option<u32>) -> Next {
        let (at_a_time, beyond) = (self.pages(AT_A_TIME), self.pages(AT_A_TIME_BEYOND));
        let pages = self.table.pages;
        let Some(range) = self.ranges.get_mut(&start) else { return Next::End };
        if at < range.end {
            let to = at.saturating_add(at_a_time);
            // Behind the pages that were counted there may be newer ones, with nothing that this snapshot sees.
            let to = if range.end == NO_PAGE && to >= pages { NO_PAGE } else { to.min(range.end) };
            range.next = to;
            return Next::Read(to);
        }
        if at == NO_PAGE {
            return Next::End;
        }
        if told != Some(at) && self.ranges.contains_key(&at) {
            return Next::Border;
        }
        let to = at.saturating_add(beyond);
        let to = if to >= pages { NO_PAGE } else { to };
        let to = self.ranges.range(at + 1..).next().map_or(to, |(border, _)| to.min(*border));
        self.passed = self.passed.max(to);
        Next::Read(to)
    }

    /// Where the largest of what is left may be divided, and how many bytes each half has.
    fn half(&self) -> Option<(u32, u32, u64)> {
        let of_a_page = self.table.size / u64::from(self.table.pages).max(1);
        let halves = self.ranges.iter().filter(|(_, range)| range.read.is_none()).filter_map(|(start, range)| {
            let end = range.end.min(self.table.pages);
            let left = end.checked_sub(range.next)? / 2;
            let middle = range.next + left;
            (left > 0 && middle >= self.passed).then_some((*start, middle, u64::from(left) * of_a_page))
        });
        halves.max_by_key(|(.., bytes)| *bytes).filter(|(.., bytes)| *bytes >= LEAST_RANGE)
    }

    /// Begins a range in the middle of what is left of the largest.
    fn divide(&mut self) -> Option<u32> {
        let (start, middle, _) = self.half()?;
        let range = self.ranges.get_mut(&start)?;
        let end = std::mem::replace(&mut range.end, middle);
        self.ranges.insert(middle, TidRange { next: middle, end, read: None });
        self.running += 1;
        Some(middle)
    }
}

impl<'a> Reading<'a> {
    pub(super) fn new(
        server: &'a Server,
        database: &'a DatabaseDetail,
        relations: &'a [Relation],
        into: &'a SnapshotWriter,
    ) -> Self {
        let mut tables: Vec<&Relation> =
            relations.iter().filter(|one| one.kind == RelationKind::Table && one.left_out.is_none()).collect();
        tables.sort_by_key(|table| std::cmp::Reverse(table.size));
        let work = Work { waiting: tables.into(), ..Work::default() };
        Self { server, database, into, work: Mutex::new(work), changed: Notify::new() }
    }

    fn work(&self) -> MutexGuard<'_, Work<'a>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads every table. What is locked against newcomers is left to the holder, who has its lock already.
    pub(super) async fn all(&self, holder: &Session) -> Result<(), SourceError> {
        let left = try_join_all((0..self.server.config.workers).map(|_| self.worker())).await;
        // A writer's error may only be an echo of what went wrong with a part.
        let left = left.map_err(|error| self.into.failure().map_or(error, SourceError::Pipeline))?;
        if left.iter().all(Vec::is_empty) {
            return Ok(());
        }
        let settings = self.database.row_settings.join("; ");
        holder.batch_execute(&settings).await.map_err(query("pinning the settings of rows"))?;
        for table in left.into_iter().flatten() {
            let mut writer = self.into.range(self.format(table), false).await?;
            self.whole(holder, table, &mut writer).await?;
            self.store(table, vec![writer.finish()?])?;
        }
        Ok(())
    }

    /// Reads tables and ranges while there are any. Returns the tables that it could not lock.
    async fn worker(&self) -> Result<Vec<&'a Relation>, SourceError> {
        let (mut session, mut left) = (None, Vec::new());
        loop {
            // Asked for before looking, so that no change is missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let task = self.work().task();
            let table = match task {
                Task::Begin(table) | Task::Divide(table) => table,
                Task::Wait => {
                    changed.await;
                    continue;
                }
                Task::None => break,
            };
            let worker = match &mut session {
                Some(worker) => worker,
                None => session.insert(Worker::open(self.server, self.database).await?),
            };
            let is_locked = worker.lock(table).await?;
            match task {
                Task::Begin(_) => {
                    let is_open = is_locked && is_divisible(table);
                    self.work().begun(table, is_open);
                    self.changed.notify_waiters();
                    if !is_locked {
                        left.push(table);
                    } else if is_open {
                        let writer = self.into.range(self.format(table), false).await?;
                        self.range(&worker.session, table, 0, writer).await?;
                    } else {
                        let mut writer = self.into.range(self.format(table), false).await?;
                        self.whole(&worker.session, table, &mut writer).await?;
                        self.store(table, vec![writer.finish()?])?;
                    }
                }
                // Those who have it go on alone.
                _ if !is_locked => break,
                _ => {
                    let writer = self.into.range(self.format(table), true).await?;
                    let start = self.work().open.get_mut(&table.oid).and_then(Open::divide);
                    if let Some(start) = start {
                        self.range(&worker.session, table, start, writer).await?;
                    }
                }
            }
        }
        if let Some(worker) = session {
            worker.session.batch_execute("COMMIT").await.map_err(query("ending a worker's transaction"))?;
        }
        Ok(left)
    }

    fn format(&self, table: &Relation) -> Format {
        let is_binary = table.is_binary && self.database.encoding == "UTF8" && !self.server.config.copy_text;
        if is_binary { Format::CopyBinary } else { Format::CopyText }
    }

    fn detail(&self, table: &Relation) -> TableDetail {
        TableDetail::new(&self.database.name, table, self.format(table), &self.database.encoding)
    }

    /// A whole table by one statement.
    async fn whole(
        &self,
        session: &Session,
        table: &Relation,
        writer: &mut RangeWriter<'_>,
    ) -> Result<(), SourceError> {
        let statement = self.detail(table).copy_out(self.format(table), &self.database.encoding);
        catalog::still_named(session, table).await?;
        self.copy(session, table, &statement, writer).await?;
        // Afterwards, so that no moment of the reading is left out.
        Ok(catalog::still_named(session, table).await?)
    }

    /// The range that begins at page `start`, and as much of what follows it as its parts need. Who ends the table's last range stores the table.
    async fn range(
        &self,
        session: &Session,
        table: &'a Relation,
        start: u32,
        mut writer: RangeWriter<'_>,
    ) -> Result<(), SourceError> {
        let (detail, format) = (self.detail(table), self.format(table));
        catalog::still_named(session, table).await?;
        let (mut at, mut told) = (start, None);
        while !writer.is_past_border() {
            let next = self.work().open.get_mut(&table.oid).map_or(Next::End, |open| open.next(start, at, told));
            match next {
                Next::Read(to) => {
                    let statement = detail.copy_pages_out(at, to, format, &self.database.encoding);
                    // A query is planned, and its planner locks every index of the table to the transaction's end: whoever then makes one anew
                    // would wait for us, and everyone behind him for him.
                    session.batch_execute("SAVEPOINT r").await.map_err(query("setting a savepoint"))?;
                    self.copy(session, table, &statement, &mut writer).await?;
                    let back = session.batch_execute("ROLLBACK TO r; RELEASE r").await;
                    back.map_err(query("going back to a savepoint"))?;
                    at = to;
                }
                Next::Border => {
                    writer.until_border();
                    told = Some(at);
                }
                Next::End => break,
            }
        }
        catalog::still_named(session, table).await?;
        let read = writer.finish()?;
        let ended = {
            let mut work = self.work();
            if let Some(open) = work.open.get_mut(&table.oid)
                && let Some(range) = open.ranges.get_mut(&start)
            {
                range.read = Some(read);
                open.running -= 1;
            }
            let is_last = work.open.get(&table.oid).is_some_and(|open| open.running == 0);
            is_last.then(|| work.open.remove(&table.oid)).flatten()
        };
        match ended {
            Some(open) => self.store(table, open.ranges.into_values().filter_map(|range| range.read).collect()),
            None => Ok(()),
        }
    }

    async fn copy(
        &self,
        session: &Session,
        table: &Relation,
        statement: &str,
        writer: &mut RangeWriter<'_>,
    ) -> Result<(), SourceError> {
        let failed = |error| query(format!("reading {} of database `{}`", table.shown(), session.database))(error);
        let rows = session.copy_out(statement).await.map_err(failed)?;
        let mut rows = std::pin::pin!(rows);
        while let Some(chunk) = rows.try_next().await.map_err(failed)? {
            writer.write(&chunk).await?;
        }
        Ok(())
    }

    fn store(&self, table: &Relation, ranges: Vec<Range>) -> Result<(), SourceError> {
        let path = format!("{}/tables/{}", self.database.folder, table.shown());
        let detail = serde_json::to_value(self.detail(table))
            .map_err(|error| PostgresError::Detail { detail: error.to_string() })?;
        match self.into.join(path, self.format(table), ranges, detail)? {
            (_, Some(_)) => Ok(()),
            (_, None) => Err(PostgresError::TornRows { table: table.shown() }.into()),
        }
    }
}

/// Is it worth the while, and can it be done?
fn is_divisible(table: &Relation) -> bool {
    table.is_heap
        && table.condition.is_empty()
        && table.pages > 1
        && !table.columns.is_empty()
        && table.size >= 2 * LEAST_RANGE
}

/// One more connection to a database, in its snapshot.
pub(super) async fn worker_session(server: &Server, database: &DatabaseDetail) -> Result<Session, PostgresError> {
    let session = server.connect(&database.name).await?;
    // With the settings of rows in the transaction, which they are for.
    let import = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; {}",
        sql::literal(&database.snapshot),
        database.row_settings.join("; ")
    );
    session.batch_execute(&import).await.map_err(query("importing the snapshot"))?;
    Ok(session)
}

/// A connection that reads rows, with the tables that it has locked.
struct Worker {
    session: Session,
    locked: HashSet<u32>,
}

impl Worker {
    async fn open(server: &Server, database: &DatabaseDetail) -> Result<Self, SourceError> {
        let session = worker_session(server, database).await?;
        let settings = format!("{IN_HEAP_ORDER}; SET lock_timeout = '{}ms'", server.config.lock_timeout.as_millis());
        session.batch_execute(&settings).await.map_err(query("setting up a session that reads rows"))?;
        Ok(Self { session, locked: HashSet::new() })
    }

    /// Someone who waits for an exclusive lock waits for the holder, and whoever asks after him waits for him: for ever. Says whether the
    /// lock could be had at once.
    async fn lock(&mut self, table: &Relation) -> Result<bool, SourceError> {
        if self.locked.contains(&table.oid) {
            return Ok(true);
        }
        let lock = format!("SAVEPOINT l; LOCK TABLE ONLY {} IN ACCESS SHARE MODE NOWAIT", table.sql());
        match self.session.batch_execute(&lock).await {
            Ok(()) => {
                // The lock stays; thousands of savepoints would not be free.
                self.session.batch_execute("RELEASE l").await.map_err(query("releasing a savepoint"))?;
                self.locked.insert(table.oid);
                Ok(true)
            }
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                self.session.batch_execute("ROLLBACK TO l").await.map_err(query("going back to a savepoint"))?;
                Ok(false)
            }
            Err(error) => Err(query(format!("locking {}", table.shown()))(error).into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table of so many pages of 1 MiB.
    fn table(pages: u32) -> Relation {
        Relation {
            oid: 1,
            kind: RelationKind::Table,
            schema: "s".into(),
            name: "t".into(),
            columns: vec!["c".into()],
            size: u64::from(pages) << 20,
            pages,
            is_heap: true,
            is_configuration: false,
            condition: String::new(),
            is_unlogged: false,
            left_out: None,
            is_binary: true,
            readable: true,
        }
    }

    /// A reader as the pipeline's, with a row on each page. A cut is after a page that is a mark, and none of the 3 before it is.
    struct Reader {
        start: u32,
        at: u32,
        told: Option<u32>,
        /// Where the first cut is that does not depend on what was before the border; `None` while there is no border to be found.
        since: Option<u32>,
        /// Leaves out what comes before it, or ends with it.
        leaves_out: bool,
        ended: bool,
        kept: Vec<u32>,
    }

    impl Reader {
        fn new(start: u32) -> Self {
            let since = (start > 0).then_some(0);
            Self { start, at: start, told: None, since, leaves_out: start > 0, ended: false, kept: Vec::new() }
        }

        fn read(&mut self, to: u32, marks: &[bool]) {
            for page in self.at..to.min(marks.len() as u32) {
                if self.ended {
                    break;
                }
                if !self.leaves_out {
                    self.kept.push(page);
                }
                let Some(since) = &mut self.since else { continue };
                *since += 1;
                if marks[page as usize] && std::mem::take(since) >= 4 {
                    self.since = None;
                    self.ended = !self.leaves_out;
                    self.leaves_out = false;
                }
            }
            self.at = to;
        }

        fn until_border(&mut self) {
            self.ended = self.leaves_out;
            (self.since, self.told) = (Some(0), Some(self.at));
        }
    }

    proptest! {
        /// Whoever divides when, and whoever reads how fast: every page is kept once.
        #[test]
        fn every_page_is_kept_by_one_reader(
            // Few of them too, so that somebody goes on far beyond a border.
            marks in (0.002..0.3).prop_flat_map(|often| proptest::collection::vec(prop::bool::weighted(often), 70..600)),
            turns in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..200),
        ) {
            let table = table(marks.len() as u32);
            let mut open = Open::new(&table);
            let mut readers = vec![Reader::new(0)];
            let mut turns = turns.into_iter();
            let mut running = vec![0];
            while !running.is_empty() {
                let (divides, turn) = turns.next().map_or((false, 0), |(divides, n)| (divides, n.index(running.len())));
                if divides && running.len() < 8 {
                    if let Some(start) = open.divide() {
                        running.push(readers.len());
                        readers.push(Reader::new(start));
                    }
                    continue;
                }
                let reader = &mut readers[running[turn]];
                match open.next(reader.start, reader.at, reader.told) {
                    Next::Read(to) => {
                        prop_assert!(to > reader.at);
                        reader.read(to, &marks);
                    }
                    Next::Border => reader.until_border(),
                    Next::End => reader.ended = true,
                }
                if reader.ended {
                    running.remove(turn);
                    open.ranges.get_mut(&reader.start).unwrap().read = Some(Range::default());
                }
            }
            readers.sort_by_key(|reader| reader.start);
            let kept: Vec<u32> = readers.iter().flat_map(|reader| reader.kept.clone()).collect();
            prop_assert_eq!(kept, (0..marks.len() as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nobody_begins_where_somebody_went_on_already() {
        let large = table(1000);
        let mut open = Open::new(&large);
        assert_eq!(open.divide(), Some(500));
        let mut at = 0;
        while at < 500 {
            let Next::Read(to) = open.next(0, at, None) else { panic!("{at} is before the border") };
            at = to;
        }
        assert_eq!(open.next(0, at, None), Next::Border);
        while at <= 750 {
            let Next::Read(to) = open.next(0, at, Some(500)) else { panic!("{at} is beyond the border") };
            at = to;
        }
        // The middle of what the reader of the second half has left: its cuts might not be those of who passed there.
        assert_eq!(open.divide(), None);
        assert_eq!(open.next(500, 500, None), Next::Read(532));
        assert_eq!(open.divide(), Some(532 + 234));
    }

    #[test]
    fn large_tables_are_divided_in_halves_and_small_ones_are_not() {
        assert!(!is_divisible(&table(63)) && is_divisible(&table(64)));
        let (large, small) = (table(1000), table(70));
        let mut open = Open::new(&large);
        assert_eq!(open.next(0, 0, None), Next::Read(32));
        assert_eq!(open.divide(), Some(32 + 484));
        assert_eq!(open.divide(), Some(32 + 484 + 242), "of two that are equal, the later one");
        let mut open = Open::new(&small);
        assert_eq!((open.divide(), open.divide()), (Some(35), None));
        assert_eq!(open.next(0, 0, None), Next::Read(32));
        assert_eq!(open.next(0, 32, None), Next::Read(35));
        assert_eq!(open.next(0, 35, None), Next::Border);
        assert_eq!(open.next(0, 35, Some(35)), Next::Read(39));
        assert_eq!(open.next(35, 35, None), Next::Read(67));
        assert_eq!(open.next(35, 67, None), Next::Read(NO_PAGE));
        assert_eq!(open.next(35, NO_PAGE, None), Next::End);
    }
}
