//! Large objects: who owns them and who may do what with them as statements, their bytes as rows.
//!
//! `pg_dump` writes their bytes as statements in hexadecimal digits, and since version 17 everything about them among the data, apart from the
//! definitions. So it is told to leave them out, and both are ours: an artifact with the statements, and one with a row for each piece, which is
//! cut, stored once and fingerprinted as every table's rows are.

use futures::{StreamExt, TryStreamExt};
use tokio_postgres::types::ToSql;

use super::{
    connect::Session,
    error::{PostgresError, query},
    load, sql,
};
use crate::{
    pipeline::{Artifact, ArtifactWriter, Progress, SnapshotReader},
    source::SourceError,
};

/// Bytes of a piece. As text it is twice as long, so that many fit into a part.
const PIECE: u32 = 64 * 1024;
/// `INV_READ`, the mode in which an object is opened (PostgreSQL documentation, 35.3.4).
const READ: u32 = 0x0004_0000;
/// Objects of which one transaction makes, or grants, something: each takes a lock.
const MADE_AT_ONCE: u64 = 1000;
/// How they are named, before their OIDs.
pub(super) const SHOWN: &str = "large object ";
/// The table through which a part's pieces pass.
const PIECES: &str = "pg_temp.altlas_pieces";

/// How many there are.
pub(super) async fn count(session: &Session) -> Result<u64, PostgresError> {
    let row = session
        .query_one("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata", &[])
        .await
        .map_err(query(format!("looking for large objects in database `{}`", session.database)))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// Those that the role may not read, by their OIDs: neither ownership of a database nor `pg_read_all_data` lets one read them.
pub(super) async fn unreadable(session: &Session) -> Result<Vec<String>, PostgresError> {
    let rows = session
        .query(
            "SELECT m.oid::text FROM pg_catalog.pg_largeobject_metadata m \
             WHERE NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) \
             AND pg_catalog.current_setting('lo_compat_privileges') <> 'on' \
             AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(m.lomacl, pg_catalog.acldefault('L', m.lomowner))) a \
                 WHERE a.privilege_type = 'SELECT' AND CASE a.grantee WHEN 0 THEN true ELSE pg_catalog.pg_has_role(a.grantee, 'USAGE') END) \
             ORDER BY m.oid",
            &[],
        )
        .await
        .map_err(query(format!("looking for large objects in database `{}`", session.database)))?;
    Ok(rows.iter().map(|row| format!("{SHOWN}{}", row.get::<_, String>(0))).collect())
}

/// The statement that reads all pieces: the object's OID, where the piece begins, its bytes. The last one of an object is the one that is
/// shorter than [`PIECE`], if need be empty, which [`Pieces`] relies on.
///
/// Each function's argument is the result of the one before, which keeps them in order, and the object's OID, without which the planner of some
/// versions remembers what a function gave for the same descriptor, that of another object.
pub(super) fn copy_out() -> String {
    format!(
        "COPY (SELECT m.oid, p.at, pg_catalog.lo_get(m.oid, p.at, {PIECE}) FROM pg_catalog.pg_largeobject_metadata m, \
         LATERAL (SELECT pg_catalog.lo_open(m.oid, {READ}) AS descriptor OFFSET 0) o, \
         LATERAL (SELECT pg_catalog.lo_lseek64(o.descriptor, m.oid::int8 * 0, 2) AS size OFFSET 0) s, \
         LATERAL (SELECT pg_catalog.lo_close(o.descriptor + ((s.size + m.oid::int8) * 0)::int4) AS closed OFFSET 0) c, \
         LATERAL pg_catalog.generate_series(0::int8, s.size + c.closed, {PIECE}) AS p (at)) TO STDOUT"
    )
}

/// Looks at pieces as they come: has every object come to its end?
#[derive(Default)]
pub(super) struct Pieces {
    /// The object, and where its next piece begins; none after its last.
    open: Option<(Vec<u8>, u64)>,
    objects: u64,
}

impl Pieces {
    /// Takes one row, as COPY gives it; is it the one that was to come?
    pub(super) fn take(&mut self, row: &[u8]) -> bool {
        let mut fields = row.strip_suffix(b"\n").unwrap_or(row).splitn(3, |byte| *byte == b'\t');
        let (Some(object), Some(at), Some(bytes)) = (fields.next(), fields.next(), fields.next()) else { return false };
        let Some(at) = std::str::from_utf8(at).ok().and_then(|at| at.parse::<u64>().ok()) else { return false };
        // In digits, after `\\x`.
        let Some(digits) = bytes.strip_prefix(b"\\\\x") else { return false };
        let expected = match self.open.take() {
            Some((open, next)) => open == object && next == at,
            None => {
                self.objects += 1;
                at == 0
            }
        };
        if digits.len() as u64 == 2 * u64::from(PIECE) {
            self.open = Some((object.to_owned(), at + u64::from(PIECE)));
        }
        expected
    }

    /// Were so many objects whole?
    pub(super) fn are_whole(&self, objects: u64) -> bool {
        self.open.is_none() && self.objects == objects
    }
}

/// A role's name, quoted, as it was in the snapshot: `pg_get_userbyid` looks at what is there now.
macro_rules! role {
    ($oid:literal) => {
        concat!("(SELECT pg_catalog.quote_ident(r.rolname) FROM pg_catalog.pg_roles r WHERE r.oid = ", $oid, ")")
    };
}

const OWNERS: &str =
    concat!("SELECT m.oid::text, ", role!("m.lomowner"), " FROM pg_catalog.pg_largeobject_metadata m ORDER BY m.oid");

/// Of each object that has a list of grants; one line without a privilege where the list is empty.
const GRANTS: &str = concat!(
    "SELECT m.oid::text, ",
    role!("m.lomowner"),
    ", coalesce(a.privilege_type, ''), CASE WHEN a.grantee = 0 OR a.grantee IS NULL THEN 'PUBLIC' ELSE ",
    role!("a.grantee"),
    " END, CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END, CASE WHEN a.grantor IS NULL THEN '' ELSE ",
    role!("a.grantor"),
    " END FROM pg_catalog.pg_largeobject_metadata m LEFT JOIN LATERAL pg_catalog.aclexplode(m.lomacl) WITH ORDINALITY \
     a (grantor, grantee, privilege_type, is_grantable, n) ON true WHERE m.lomacl IS NOT NULL ORDER BY m.oid, a.n"
);

const COMMENTS: &str = "SELECT d.objoid::text, d.description FROM pg_catalog.pg_description d \
     WHERE d.classoid = 'pg_catalog.pg_largeobject'::pg_catalog.regclass ORDER BY d.objoid";

const LABELS: &str = "SELECT l.objoid::text, pg_catalog.quote_ident(l.provider), l.label FROM pg_catalog.pg_seclabel l \
     WHERE l.classoid = 'pg_catalog.pg_largeobject'::pg_catalog.regclass ORDER BY l.objoid, l.provider";

/// One privilege that somebody has been granted.
#[derive(Debug)]
struct Grant {
    privilege: String,
    grantee: String,
    /// ` WITH GRANT OPTION`, or nothing.
    option: String,
    grantor: String,
}

/// The grants on one object.
#[derive(Debug, Default)]
struct Granted {
    object: String,
    owner: String,
    grants: Vec<Grant>,
}

impl Granted {
    /// The statements that grant the same again, to an object that has its owner's default ones. Who grants must have been granted that
    /// before, which is not always the order of the list.
    fn statements(mut self) -> String {
        if self.object.is_empty() {
            return String::new();
        }
        let (object, owner) = (&self.object, &self.owner);
        let mut text = format!("REVOKE ALL ON LARGE OBJECT {object} FROM PUBLIC, {owner};\n");
        let mut may: Vec<(String, String)> = Vec::new();
        while !self.grants.is_empty() {
            let can = |grant: &Grant| {
                grant.grantor == *owner
                    || may.iter().any(|(role, what)| *role == grant.grantor && *what == grant.privilege)
            };
            // Where nobody can, the server may know more of its roles than the list tells.
            let next = self.grants.remove(self.grants.iter().position(can).unwrap_or(0));
            let Grant { privilege, grantee, option, grantor } = next;
            let grant = format!("GRANT {privilege} ON LARGE OBJECT {object} TO {grantee}{option};\n");
            text.push_str(&match grantor == *owner {
                true => grant,
                false => format!("SET SESSION AUTHORIZATION {grantor};\n{grant}RESET SESSION AUTHORIZATION;\n"),
            });
            if !option.is_empty() {
                may.push((grantee, privilege));
            }
        }
        text
    }
}

/// Writes the statements that make every object, empty, with its owner, grants, comment and labels.
pub(super) async fn statements(session: &Session, writer: &mut ArtifactWriter<'_>) -> Result<(), SourceError> {
    writer.write(b"SET client_encoding = 'UTF8';\nSET standard_conforming_strings = on;\nBEGIN;\n").await?;
    let mut written: u64 = 0;
    // Each transaction makes some.
    let mut some = move |text: String| {
        written += 1;
        match written.is_multiple_of(MADE_AT_ONCE) {
            true => format!("{text}COMMIT;\nBEGIN;\n"),
            false => text,
        }
    };
    each(session, OWNERS, writer, |[object, owner]| {
        some(format!("SELECT pg_catalog.lo_create({object});\nALTER LARGE OBJECT {object} OWNER TO {owner};\n"))
    })
    .await?;
    let mut granted = Granted::default();
    each(session, GRANTS, writer, |[object, owner, privilege, grantee, option, grantor]| {
        let mut text = String::new();
        if object != granted.object {
            let before = std::mem::replace(&mut granted, Granted { object, owner, grants: Vec::new() });
            text = some(before.statements());
        }
        if !privilege.is_empty() {
            granted.grants.push(Grant { privilege, grantee, option, grantor });
        }
        text
    })
    .await?;
    writer.write(granted.statements().as_bytes()).await?;
    each(session, COMMENTS, writer, |[object, comment]| {
        some(format!("COMMENT ON LARGE OBJECT {object} IS {};\n", sql::literal(&comment)))
    })
    .await?;
    each(session, LABELS, writer, |[object, provider, label]| {
        some(format!("SECURITY LABEL FOR {provider} ON LARGE OBJECT {object} IS {};\n", sql::literal(&label)))
    })
    .await?;
    Ok(writer.write(b"COMMIT;\n").await?)
}

/// Writes what `text` makes of every row of a statement, as it comes.
async fn each<const N: usize>(
    session: &Session,
    statement: &str,
    writer: &mut ArtifactWriter<'_>,
    mut text: impl FnMut([String; N]) -> String,
) -> Result<(), SourceError> {
    let failed = || query(format!("reading about large objects of database `{}`", session.database));
    let none: [&(dyn ToSql + Sync); 0] = [];
    let rows = session.query_raw(statement, none).await.map_err(failed())?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(failed())? {
        let mut columns = std::array::from_fn(|_| String::new());
        for (n, column) in columns.iter_mut().enumerate() {
            // Nothing but a role can be missing, and only where one went without its traces: every name is of the snapshot.
            *column = row.get::<_, Option<String>>(n).ok_or_else(|| PostgresError::NotSupported {
                database: session.database.clone(),
                what: format!(
                    "{SHOWN}{}, whose owner, or whom it is granted to, is no role any more",
                    row.get::<_, Option<String>>(0).unwrap_or_default()
                ),
            })?;
        }
        writer.write(text(columns).as_bytes()).await?;
    }
    Ok(())
}

/// Gives the objects, which are there and empty, their bytes: a part at a time through a table of the session's.
pub(super) async fn load(session: &Session, snapshot: &SnapshotReader, artifact: &Artifact) -> Result<(), SourceError> {
    let failed = || query(format!("loading large objects into database `{}`", session.database));
    let table = format!(
        "SET synchronous_commit = off; CREATE TEMPORARY TABLE {PIECES} (object oid NOT NULL, at int8 NOT NULL, bytes bytea NOT NULL)"
    );
    session.batch_execute(&table).await.map_err(failed())?;
    let progress = snapshot.progress();
    let mut parts = std::pin::pin!(snapshot.open(artifact));
    while let Some(part) = parts.next().await {
        let part = part?;
        let sink = session.copy_in(&format!("COPY {PIECES} FROM STDIN")).await.map_err(failed())?;
        let mut sink = std::pin::pin!(sink);
        load::send(sink.as_mut(), bytes::Bytes::clone(&part), progress).await.map_err(failed())?;
        let pieces = sink.finish().await.map_err(failed())?;
        let put = format!("SELECT pg_catalog.count(pg_catalog.lo_put(object, at, bytes)) FROM {PIECES}");
        session.query_one(&put, &[]).await.map_err(failed())?;
        Progress::add(&progress.rows, pieces);
        session.batch_execute(&format!("TRUNCATE {PIECES}")).await.map_err(failed())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(object: u32, at: u64, bytes: usize) -> Vec<u8> {
        format!("{object}\t{at}\t\\\\x{}\n", "ab".repeat(bytes)).into_bytes()
    }

    #[test]
    fn an_object_ends_with_a_piece_that_is_short() {
        let full = PIECE as usize;
        let taken = |rows: &[(u32, u64, usize)], objects| {
            let mut pieces = Pieces::default();
            rows.iter().all(|(object, at, bytes)| pieces.take(&row(*object, *at, *bytes))) && pieces.are_whole(objects)
        };
        assert!(taken(&[(1, 0, full), (1, 65536, 7), (2, 0, 0), (3, 0, full), (3, 65536, 0)], 3));
        assert!(!taken(&[(1, 0, full)], 1), "the end");
        assert!(!taken(&[(1, 0, full), (2, 0, 1)], 2), "the end of the first");
        assert!(!taken(&[(1, 0, full), (1, 131072, 1)], 1), "the middle");
        assert!(!taken(&[(1, 65536, 1)], 1), "the beginning");
        assert!(!taken(&[(1, 0, 1)], 2), "a whole one");
        assert!(!Pieces::default().take(b"1\t0\t\\N\n"));
    }

    #[test]
    fn who_grants_was_granted_before() {
        let grant = |grantor: &str, grantee: &str, option: &str| Grant {
            privilege: "SELECT".into(),
            grantee: grantee.into(),
            option: option.into(),
            grantor: grantor.into(),
        };
        let with = " WITH GRANT OPTION";
        // As PostgreSQL keeps it where the owner has revoked from x what x has from y too.
        let grants = vec![grant("own", "y", with), grant("x", "z", ""), grant("y", "x", with), grant("gone", "q", "")];
        let text = Granted { object: "600".into(), owner: "own".into(), grants }.statements();
        let granted: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("GRANT SELECT ON LARGE OBJECT 600 TO ")).collect();
        assert_eq!(granted, ["y WITH GRANT OPTION;", "x WITH GRANT OPTION;", "z;", "q;"]);
        assert!(text.starts_with("REVOKE ALL ON LARGE OBJECT 600 FROM PUBLIC, own;\nGRANT"));
        assert!(text.contains("SET SESSION AUTHORIZATION x;\nGRANT SELECT ON LARGE OBJECT 600 TO z;\nRESET"));
        let none = Granted { object: "7".into(), owner: "own".into(), grants: Vec::new() }.statements();
        assert_eq!(none, "REVOKE ALL ON LARGE OBJECT 7 FROM PUBLIC, own;\n");
    }
}
