//! What comes after the rows: indexes and keys, several at a time; then everything else in the order of the script; foreign keys are added without
//! looking at the rows and validated several at a time.
//!
//! The script is `pg_dump`'s, statement by statement. Only two kinds are carried out in other words, with the same end: a key of a large table, as
//! an index that is built beside the table's others and becomes a constraint in its place (`ADD CONSTRAINT … USING INDEX`), and a foreign key
//! (`NOT VALID`, then `VALIDATE CONSTRAINT`).

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use futures::future::try_join_all;

use super::{
    build::Build,
    catalog,
    connect::{Server, Session},
    error::{PostgresError, query},
    sql::{self, Name, Statement},
};

/// A table of more bytes than this has its indexes built side by side.
const LARGE: u64 = 16 * 1024 * 1024;
/// Of a statement, so much is shown.
const SHOWN: usize = 120;

/// Settings of sessions that build indexes and look at whole tables.
const FAST: &str = "SET synchronous_commit = off; SELECT pg_catalog.set_config('maintenance_work_mem', \
     greatest(pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem')), 268435456)::text || 'B', false)";

/// A statement in its place, with what it needs.
#[derive(Clone, Debug)]
struct Step<'a> {
    /// Its number in the script.
    n: usize,
    /// What is carried out.
    sql: String,
    /// Out of the script's order: the setting of `default_tablespace` that it is to be carried out under.
    tablespace: Option<&'a str>,
    /// It in a few words.
    what: String,
}

/// Steps of one connection.
type Job<'a> = Vec<Step<'a>>;

/// How a script is carried out.
#[derive(Debug, Default)]
struct Plan<'a> {
    /// Settings at the script's beginning.
    settings: Vec<&'a str>,
    /// Of tables, largest first; several connections take them.
    builds: Vec<Job<'a>>,
    /// What comes after them.
    ordered: Vec<Step<'a>>,
    /// What looks at rows once all is there, by the number of the step that it follows; before the step `stop`.
    validations: BTreeMap<usize, Step<'a>>,
    /// From this step on, what is done is seen by others: event triggers, subscriptions.
    stop: usize,
}

/// A statement in a few words.
pub(super) fn shown(statement: &Statement<'_>) -> String {
    let words: Vec<&str> = statement.subject().split_whitespace().collect();
    words.join(" ").chars().take(SHOWN).collect()
}

impl<'a> Plan<'a> {
    /// `sizes` are bytes of rows of plain tables by name: what is not among them, as a partitioned table, is left as it is.
    fn new(script: &'a [Statement<'a>], sizes: &HashMap<Name, u64>) -> Self {
        let mut plan = Plan { stop: script.len(), ..Plan::default() };
        let mut of_tables: BTreeMap<Name, Job<'a>> = BTreeMap::new();
        let mut tablespace = None;
        let is_setting = |one: &Statement<'_>| one.begins(&["set"]) || one.begins(&["select"]);
        for (n, statement) in script.iter().enumerate() {
            if statement.begins(&["set", "default_tablespace"]) {
                tablespace = Some(statement.text);
            }
            if n == plan.settings.len() && is_setting(statement) {
                plan.settings.push(statement.text);
                continue;
            }
            let is_seen =
                statement.begins(&["create", "event", "trigger"]) || statement.begins(&["create", "subscription"]);
            if is_seen && plan.stop == script.len() {
                plan.stop = n;
            }
            let step = |sql: String| Step { n, sql, tablespace: None, what: shown(statement) };
            let build = |sql: String| Step { tablespace, ..step(sql) };
            let as_it_is = || build(statement.text.to_owned());
            let key = statement.key_constraint().filter(|key| sizes.contains_key(&key.table));
            let index = statement.index_on().filter(|table| sizes.contains_key(table));
            let foreign = statement.constraint_on(&["foreign", "key"]).filter(|table| sizes.contains_key(table));
            match (key, index, foreign) {
                (Some(key), ..) if sizes[&key.table] > LARGE => {
                    plan.builds.push(vec![build(key.create_index)]);
                    plan.ordered.push(step(key.attach));
                }
                (Some(key), ..) => of_tables.entry(key.table).or_default().push(as_it_is()),
                (_, Some(table), _) if sizes[&table] > LARGE => plan.builds.push(vec![as_it_is()]),
                (_, Some(table), _) => of_tables.entry(table).or_default().push(as_it_is()),
                (.., Some(table))
                    if !statement.has_word("valid")
                        && !statement.has_word("enforced")
                        // Before 18, validating one to a partitioned table leaves what it has of the partitions as it is.
                        && statement.references().is_some_and(|table| sizes.contains_key(&table)) =>
                {
                    plan.ordered.push(step(format!("{} NOT VALID", statement.text)));
                    let name = statement.name_after("constraint").unwrap_or_default();
                    let table = sql::qualified(&table.0, &table.1);
                    let validate = format!("ALTER TABLE ONLY {table} VALIDATE CONSTRAINT {}", sql::ident(name));
                    plan.validations.insert(n, step(validate));
                }
                _ => plan.ordered.push(step(statement.text.to_owned())),
            }
        }
        plan.builds.extend(of_tables.into_values());
        plan
    }
}

/// Is this error of a statement whose turn has not come: something it needs is not there yet?
fn needs_something(error: &PostgresError) -> bool {
    matches!(error, PostgresError::Query { state: Some(state), .. } if state.starts_with(b"42"))
}

/// What carrying out a script leaves to be said.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// What to know, in words.
    pub(super) notes: Vec<String>,
    /// Materialized views that are empty because what they look at is elsewhere, and cannot be reached.
    pub(super) unfilled: Vec<Name>,
}

/// Carries out a script of post-data definitions, `text`, in the database of `build`.
///
/// Where only some tables' rows were asked for, foreign keys to others are not validated.
pub(super) async fn run(
    server: &Server,
    build: &Build,
    sizes: HashMap<Name, u64>,
    text: &str,
) -> Result<Done, PostgresError> {
    let script = sql::statements(text);
    let Plan { settings, mut builds, ordered, mut validations, stop } = Plan::new(&script, &sizes);
    let size = |job: &Job<'_>| {
        let tables = job
            .iter()
            .filter_map(|step| script[step.n].index_on().or_else(|| Some(script[step.n].key_constraint()?.table)));
        tables.filter_map(|table| sizes.get(&table)).max().copied().unwrap_or(0)
    };
    builds.sort_by_cached_key(|job| std::cmp::Reverse(size(job)));
    let place = Place { server, build, settings: settings.join("; ") };

    // What came too early has its turn in the script's order, and in its words.
    let early: HashSet<usize> = place.several(builds, true).await?.into_iter().collect();
    let whole = |n: usize| Step { n, sql: script[n].text.to_owned(), tablespace: None, what: shown(&script[n]) };
    let mut steps: Vec<Step<'_>> = ordered.into_iter().filter(|step| !early.contains(&step.n)).collect();
    steps.extend(early.iter().map(|n| whole(*n)));
    steps.sort_by_key(|step| step.n);

    let session = place.session().await?;
    let (before, after): (Vec<Step<'_>>, Vec<Step<'_>>) = steps.into_iter().partition(|step| step.n < stop);
    let mut done = Done::default();
    let is_empty = |n: usize| script[n].references().is_some_and(|table| build.not_asked_for.contains(&table));
    validations.retain(|n, _| !is_empty(*n));
    for step in before {
        match place.filled(&session, &script[step.n], &step, &mut done).await {
            // A partitioned table's, of which not all can be left for later: its rows are here, and those it refers to are not.
            Err(error) if !build.not_asked_for.is_empty() && has_state(&error, b"23503") => {
                done.notes.push(format!("it is not there: {error}"));
            }
            // A partitioned table has no foreign key that is not valid, for one.
            Err(error) if validations.contains_key(&step.n) => {
                tracing::debug!("{}: {error}; once more in its own words", step.what);
                validations.remove(&step.n);
                place.step(&session, &whole(step.n)).await?;
            }
            result => result?,
        }
    }
    let validations = validations.into_values().map(|step| vec![step]).collect();
    place.several(validations, false).await?;
    for step in after {
        place.filled(&session, &script[step.n], &step, &mut done).await?;
    }
    Ok(done)
}

fn has_state(error: &PostgresError, wanted: &[u8; 5]) -> bool {
    matches!(error, PostgresError::Query { state: Some(state), .. } if state == wanted)
}

/// Is this error of another server, or of a file that is not there, which a foreign table is a view of? Classes HV and 08, and 58P01.
fn is_elsewhere(error: &PostgresError) -> bool {
    let is_one = |state: &[u8; 5]| state.starts_with(b"HV") || state.starts_with(b"08") || state == b"58P01";
    matches!(error, PostgresError::Query { state: Some(state), .. } if is_one(state))
}

/// Where a script is carried out.
struct Place<'a> {
    server: &'a Server,
    build: &'a Build,
    settings: String,
}

impl Place<'_> {
    async fn session(&self) -> Result<Session, PostgresError> {
        let session = self.server.connect(&self.build.temporary).await?;
        session.batch_execute(&self.settings).await.map_err(query("setting up a session for definitions"))?;
        session.batch_execute(FAST).await.map_err(query("setting up a session for definitions"))?;
        Ok(session)
    }

    async fn step(&self, session: &Session, step: &Step<'_>) -> Result<(), PostgresError> {
        let failed = || query(format!("{} in database `{}`", step.what, self.build.to));
        match step.tablespace {
            Some(tablespace) => session.batch_execute(&format!("{tablespace}; {}", step.sql)).await.map_err(failed()),
            None => session.batch_execute(&step.sql).await.map_err(failed()),
        }
    }

    /// The same; a materialized view that is of what is elsewhere, and cannot be reached, may stay empty, and so may those that are of it.
    async fn filled(
        &self,
        session: &Session,
        statement: &Statement<'_>,
        step: &Step<'_>,
        done: &mut Done,
    ) -> Result<(), PostgresError> {
        let Err(error) = self.step(session, step).await else { return Ok(()) };
        let Some(view) = statement.refreshes() else { return Err(error) };
        // One that looks at another that stays empty says that it "has not been populated".
        let is_of_empty = has_state(&error, b"55000") && {
            let used = catalog::used_by_view(session, &view).await?;
            done.unfilled.iter().any(|empty| used.contains(empty))
        };
        if !is_elsewhere(&error) && !is_of_empty {
            return Err(error);
        }
        done.notes.push(format!("it stays empty: {error}"));
        done.unfilled.push(view);
        Ok(())
    }

    /// Carries out jobs on several connections, each job by one, its steps in order. Returns the numbers of those that `may_be_early`
    /// and are: something they need is not there yet. They have their turn in the script's order.
    async fn several(&self, jobs: Vec<Job<'_>>, may_be_early: bool) -> Result<Vec<usize>, PostgresError> {
        let queue = Mutex::new(VecDeque::from(jobs));
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let worker = async || {
            let mut early = Vec::new();
            let Some(mut job) = next() else { return Ok(early) };
            let session = self.session().await?;
            loop {
                for step in job {
                    match self.step(&session, &step).await {
                        Err(error) if may_be_early && needs_something(&error) => {
                            tracing::debug!("{}: {error}; once more in its turn", step.what);
                            early.push(step.n);
                        }
                        result => result?,
                    }
                }
                match next() {
                    Some(following) => job = following,
                    None => return Ok::<_, PostgresError>(early),
                }
            }
        };
        Ok(try_join_all((0..self.server.config.workers).map(|_| worker())).await?.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_done_in_another_order_with_the_same_end() {
        let text = "SET statement_timeout = 0;\nSELECT pg_catalog.set_config('search_path', '', false);\nSET default_tablespace = fast;\n\
             ALTER TABLE ONLY s.small ADD CONSTRAINT small_pkey PRIMARY KEY (id);\nSET default_tablespace = '';\n\
             ALTER TABLE ONLY s.large ADD CONSTRAINT large_pkey PRIMARY KEY (id);\n\
             ALTER TABLE ONLY s.parted ADD CONSTRAINT parted_pkey PRIMARY KEY (id);\n\
             CREATE INDEX large_a ON s.large USING btree (a);\nCREATE INDEX small_a ON s.small USING btree (a);\n\
             CREATE TRIGGER t BEFORE INSERT ON s.small FOR EACH ROW EXECUTE FUNCTION s.f();\n\
             ALTER TABLE ONLY s.small ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES s.large(id) ON DELETE CASCADE;\n\
             ALTER TABLE ONLY s.small ADD CONSTRAINT g FOREIGN KEY (a) REFERENCES s.large(id) NOT VALID;\n\
             CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION s.g();\n";
        let script = sql::statements(text);
        let name = |table: &str| ("s".to_owned(), table.to_owned());
        let sizes = HashMap::from([(name("large"), LARGE + 1), (name("small"), LARGE)]);
        let plan = Plan::new(&script, &sizes);
        assert_eq!(plan.settings.len(), 3);
        let builds: Vec<Vec<(usize, Option<&str>)>> =
            plan.builds.iter().map(|job| job.iter().map(|step| (step.n, step.tablespace)).collect()).collect();
        let (fast, default) = (Some("SET default_tablespace = fast"), Some("SET default_tablespace = ''"));
        assert_eq!(builds, [vec![(5, default)], vec![(7, default)], vec![(3, fast), (8, default)]]);
        assert!(plan.builds[0][0].sql.starts_with("CREATE UNIQUE INDEX \"large_pkey\""));
        assert_eq!(plan.ordered.iter().map(|step| step.n).collect::<Vec<_>>(), [4, 5, 6, 9, 10, 11, 12]);
        assert!(plan.ordered[1].sql.contains("PRIMARY KEY USING INDEX"));
        assert!(plan.ordered[4].sql.ends_with("ON DELETE CASCADE NOT VALID"));
        assert_eq!(plan.ordered[5].sql.matches("NOT VALID").count(), 1);
        assert_eq!(plan.validations.keys().copied().collect::<Vec<_>>(), [10]);
        assert_eq!(plan.stop, 12);
    }
}
