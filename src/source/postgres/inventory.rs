//! The inventory of a database: every object of the user's with its properties, as the system catalogs tell them and not as `pg_dump` writes
//! them. It is taken when the database is captured and again from the throwaway server, so that what was lost on the way through
//! `pg_dump`, the repository and `psql` is found, and named.
//!
//! A line an object: its kind, its name, its properties, its definitions, parted by tabs. Nothing in it depends on OIDs, on the order in which things
//! were made, or on sizes. Members of extensions are not in it: their extension is.

use std::collections::BTreeMap;

use super::{
    connect::Session,
    error::{PostgresError, query},
    sql::{self, Name},
};
use crate::source::Difference;

/// Not of the system: `$n` is a `pg_namespace`.
macro_rules! users {
    ($n:literal) => {
        concat!(
            "(",
            $n,
            ".nspname NOT IN ('pg_catalog', 'information_schema') AND ",
            $n,
            ".nspname !~ '^pg_(toast|temp)')"
        )
    };
}

/// Not a member of an extension: an object of this catalog with this OID.
macro_rules! own {
    ($class:literal, $oid:literal) => {
        concat!(
            "NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_catalog.",
            $class,
            "'::pg_catalog.regclass AND e.objid = ",
            $oid,
            " AND e.deptype = 'e')"
        )
    };
}

/// A relation's name, quoted where it must be.
macro_rules! name {
    ($n:literal, $c:literal) => {
        concat!("pg_catalog.format('%I.%I', ", $n, ".nspname, ", $c, ")")
    };
}

/// Who may do what, by an ACL or the default one: `SELECT`s a kind, a name and a list.
macro_rules! grants {
    ($kind:literal, $name:expr, $acl:literal, $default:literal, $owner:literal, $from:expr) => {
        concat!(
            "SELECT 'grants on ", $kind, "', ", $name, ", (SELECT pg_catalog.string_agg(g, ' ' ORDER BY g COLLATE \"C\") FROM (SELECT DISTINCT pg_catalog.format('%s=%s%s', ",
            "CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END, ",
            "a.privilege_type, CASE WHEN a.is_grantable THEN '*' END) FROM ",
            "pg_catalog.aclexplode(coalesce(", $acl, ", pg_catalog.acldefault('", $default, "', ", $owner, "))) a) x (g)) ", $from
        )
    };
}

/// Each gives a kind, a name and properties.
const PLAIN: &[&str] = &[
    concat!(
        "SELECT 'schema', pg_catalog.quote_ident(n.nspname), pg_catalog.pg_get_userbyid(n.nspowner)::text FROM pg_catalog.pg_namespace n WHERE ",
        users!("n"),
        " AND ",
        own!("pg_namespace", "n.oid")
    ),
    concat!(
        "SELECT 'type', ",
        name!("n", "t.typname"),
        ", pg_catalog.concat_ws(' ', t.typtype, pg_catalog.pg_get_userbyid(t.typowner), t.typnotnull, coalesce(pg_catalog.pg_get_expr(t.typdefaultbin, 0), t.typdefault), \
         CASE t.typtype WHEN 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) END, \
         (SELECT pg_catalog.array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid), \
         (SELECT pg_catalog.format_type(r.rngsubtype, NULL) FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid)) \
         FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
         WHERE t.typtype IN ('d', 'e', 'r', 'm', 'b') AND t.typelem = 0 AND ",
        users!("n"),
        " AND ",
        own!("pg_type", "t.oid")
    ),
    concat!(
        "SELECT 'sequence parameters', ",
        name!("n", "c.relname"),
        ", pg_catalog.concat_ws(' ', pg_catalog.format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle) \
         FROM pg_catalog.pg_sequence s JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE ",
        users!("n"),
        " AND ",
        own!("pg_class", "c.oid")
    ),
    "SELECT 'security label', pg_catalog.format('by %I of large object %s', l.provider, l.objoid), l.label FROM pg_catalog.pg_seclabel l \
         WHERE l.classoid = 'pg_catalog.pg_largeobject'::pg_catalog.regclass",
    "SELECT 'large object', m.oid::text, pg_catalog.pg_get_userbyid(m.lomowner)::text FROM pg_catalog.pg_largeobject_metadata m",
    grants!("large object", "m.oid::text", "m.lomacl", "L", "m.lomowner", "FROM pg_catalog.pg_largeobject_metadata m"),
    "SELECT 'extension', pg_catalog.quote_ident(e.extname), n.nspname::text FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace",
    concat!(
        "SELECT 'event trigger', pg_catalog.quote_ident(v.evtname), pg_catalog.concat_ws(' ', v.evtevent, v.evtenabled, v.evttags, v.evtfoid::pg_catalog.regprocedure) \
         FROM pg_catalog.pg_event_trigger v WHERE ",
        own!("pg_event_trigger", "v.oid")
    ),
    "SELECT 'publication', pg_catalog.quote_ident(p.pubname), pg_catalog.concat_ws(' ', p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, \
         (SELECT pg_catalog.array_agg(g ORDER BY g COLLATE \"C\") FROM (SELECT r.prrelid::pg_catalog.regclass::text FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid) x (g))) FROM pg_catalog.pg_publication p",
    "SELECT i.type, i.identity, '' FROM (SELECT classid, objid FROM (\
         SELECT 'pg_catalog.pg_cast'::pg_catalog.regclass, oid FROM pg_catalog.pg_cast WHERE oid >= 16384 \
         UNION ALL SELECT 'pg_catalog.pg_collation'::pg_catalog.regclass, oid FROM pg_catalog.pg_collation WHERE oid >= 16384 AND collnamespace <> 'pg_catalog'::pg_catalog.regnamespace \
         UNION ALL SELECT 'pg_catalog.pg_conversion'::pg_catalog.regclass, oid FROM pg_catalog.pg_conversion WHERE oid >= 16384 \
         UNION ALL SELECT 'pg_catalog.pg_operator'::pg_catalog.regclass, oid FROM pg_catalog.pg_operator WHERE oid >= 16384 \
         UNION ALL SELECT 'pg_catalog.pg_opclass'::pg_catalog.regclass, oid FROM pg_catalog.pg_opclass WHERE oid >= 16384 \
         UNION ALL SELECT 'pg_catalog.pg_ts_config'::pg_catalog.regclass, oid FROM pg_catalog.pg_ts_config WHERE oid >= 16384 \
         UNION ALL SELECT 'pg_catalog.pg_ts_dict'::pg_catalog.regclass, oid FROM pg_catalog.pg_ts_dict WHERE oid >= 16384 \
         UNION ALL SELECT 'pg_catalog.pg_foreign_data_wrapper'::pg_catalog.regclass, oid FROM pg_catalog.pg_foreign_data_wrapper \
         UNION ALL SELECT 'pg_catalog.pg_foreign_server'::pg_catalog.regclass, oid FROM pg_catalog.pg_foreign_server) o (classid, objid) \
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = o.classid AND e.objid = o.objid AND e.deptype = 'e')) o, \
         LATERAL pg_catalog.pg_identify_object(o.classid, o.objid, 0) i",
    grants!(
        "schema",
        "pg_catalog.quote_ident(n.nspname)",
        "n.nspacl",
        "n",
        "n.nspowner",
        concat!("FROM pg_catalog.pg_namespace n WHERE ", users!("n"), " AND ", own!("pg_namespace", "n.oid"))
    ),
    grants!(
        "table",
        name!("n", "c.relname"),
        "c.relacl",
        "r",
        "c.relowner",
        concat!(
            "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND ",
            users!("n"),
            " AND ",
            own!("pg_class", "c.oid")
        )
    ),
    grants!(
        "sequence",
        name!("n", "c.relname"),
        "c.relacl",
        "s",
        "c.relowner",
        concat!(
            "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND ",
            users!("n"),
            " AND ",
            own!("pg_class", "c.oid")
        )
    ),
    grants!(
        "column",
        concat!(name!("n", "c.relname"), " || '.' || pg_catalog.quote_ident(t.attname)"),
        "t.attacl",
        "c",
        "c.relowner",
        concat!(
            "FROM pg_catalog.pg_attribute t JOIN pg_catalog.pg_class c ON c.oid = t.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
            WHERE t.attacl IS NOT NULL AND NOT t.attisdropped AND ",
            users!("n"),
            " AND ",
            own!("pg_class", "c.oid")
        )
    ),
    grants!(
        "function",
        concat!(name!("n", "p.proname"), " || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')'"),
        "p.proacl",
        "f",
        "p.proowner",
        concat!(
            "FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE ",
            users!("n"),
            " AND ",
            own!("pg_proc", "p.oid")
        )
    ),
    grants!(
        "type",
        name!("n", "t.typname"),
        "t.typacl",
        "T",
        "t.typowner",
        concat!(
            "FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype IN ('d', 'e', 'r') AND ",
            users!("n"),
            " AND ",
            own!("pg_type", "t.oid")
        )
    ),
    "SELECT 'default privileges', pg_catalog.format('of %I for %s%s', pg_catalog.pg_get_userbyid(d.defaclrole), d.defaclobjtype, ' in ' || nullif(d.defaclnamespace, 0)::pg_catalog.regnamespace), \
     (SELECT pg_catalog.string_agg(g, ' ' ORDER BY g COLLATE \"C\") FROM (SELECT pg_catalog.format('%s=%s%s', \
     CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END, \
     a.privilege_type, CASE WHEN a.is_grantable THEN '*' END) FROM pg_catalog.aclexplode(d.defaclacl) a) x (g)) FROM pg_catalog.pg_default_acl d",
    "SELECT 'comment', pg_catalog.pg_describe_object(d.classoid, d.objoid, d.objsubid), d.description FROM pg_catalog.pg_description d \
         WHERE (d.objoid >= 16384 OR d.classoid = 'pg_catalog.pg_largeobject'::pg_catalog.regclass) AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = d.classoid AND e.objid = d.objoid AND e.deptype IN ('e', 'i')) \
         AND pg_catalog.pg_describe_object(d.classoid, d.objoid, d.objsubid) IS NOT NULL",
];

/// Each gives a kind, a name, properties, and definitions: expressions and statements as the server prints them.
///
/// `pg_attver` is no option of anybody's: 15.20 and its contemporaries keep there when a column was made, as a position in
/// the write-ahead log, and `pg_dump` leaves it out.
const DEFINED: &[&str] = &[
    concat!(
        "SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence' \
         WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'composite type' ELSE 'relation' END, ",
        name!("n", "c.relname"),
        ", \
         pg_catalog.concat_ws(' ', c.relkind, c.relpersistence, pg_catalog.pg_get_userbyid(c.relowner), c.relrowsecurity, c.relforcerowsecurity, c.relreplident, \
         (SELECT amname FROM pg_catalog.pg_am WHERE oid = c.relam), c.reloptions, \
         (SELECT pg_catalog.array_agg(",
        name!("pn", "p.relname"),
        " ORDER BY i.inhseqno) FROM pg_catalog.pg_inherits i \
            JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid), \
         CASE WHEN c.relkind = 'm' THEN c.relispopulated END), \
         ARRAY[CASE WHEN c.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(c.oid) END, \
         pg_catalog.pg_get_expr(c.relpartbound, c.oid), CASE c.relkind WHEN 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END] \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND ",
        users!("n"),
        " AND ",
        own!("pg_class", "c.oid")
    ),
    concat!(
        "SELECT 'column', ",
        name!("n", "c.relname"),
        " || '.' || pg_catalog.quote_ident(a.attname), \
         pg_catalog.concat_ws(' ', pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, \
         (SELECT pg_catalog.array_agg(o ORDER BY o COLLATE \"C\") FROM pg_catalog.unnest(a.attoptions) o WHERE o !~ '^pg_attver='), a.attislocal, \
         (SELECT ",
        name!("ln", "l.collname"),
        " FROM pg_catalog.pg_collation l JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace WHERE l.oid = a.attcollation)), \
         ARRAY[pg_catalog.pg_get_expr(d.adbin, d.adrelid)] \
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'c') AND ",
        users!("n"),
        " AND ",
        own!("pg_class", "c.oid")
    ),
    concat!(
        "SELECT 'constraint', pg_catalog.quote_ident(k.conname) || coalesce(' of table ' || (SELECT ",
        name!("cn", "c.relname"),
        " FROM pg_catalog.pg_class c \
            JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace WHERE c.oid = k.conrelid), \
            ' of domain ' || pg_catalog.format_type(nullif(k.contypid, 0), NULL), ''), \
         pg_catalog.concat_ws(' ', k.contype, k.condeferrable, k.condeferred, k.convalidated), ARRAY[pg_catalog.pg_get_constraintdef(k.oid)] \
         FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_namespace n ON n.oid = k.connamespace \
         WHERE k.contype <> 't' AND NOT (k.contype = 'f' AND k.conparentid <> 0 AND EXISTS \
             (SELECT FROM pg_catalog.pg_constraint o WHERE o.oid = k.conparentid AND o.conrelid = k.conrelid)) AND ",
        users!("n"),
        " AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.deptype = 'e' \
            AND (e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND e.objid = k.conrelid AND k.conrelid <> 0 \
              OR e.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND e.objid = k.contypid AND k.contypid <> 0))"
    ),
    concat!(
        // An invalid one is in no dump: its creation has failed, or is under way.
        "SELECT 'index', ",
        name!("n", "c.relname"),
        ", pg_catalog.concat_ws(' ', i.indisunique, i.indisprimary, i.indisclustered, i.indisreplident), \
         ARRAY[pg_catalog.pg_get_indexdef(i.indexrelid)] \
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE (i.indisvalid OR c.relkind = 'I') AND ",
        users!("n"),
        " AND ",
        own!("pg_class", "i.indrelid")
    ),
    concat!(
        "SELECT 'trigger', pg_catalog.quote_ident(t.tgname) || ' on table ' || ",
        name!("n", "c.relname"),
        ", t.tgenabled::text, ARRAY[pg_catalog.pg_get_triggerdef(t.oid)] \
         FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE NOT t.tgisinternal AND ",
        users!("n"),
        " AND ",
        own!("pg_class", "c.oid"),
        " AND ",
        own!("pg_trigger", "t.oid")
    ),
    concat!(
        "SELECT 'rule', pg_catalog.quote_ident(r.rulename) || ' on ' || ",
        name!("n", "c.relname"),
        ", r.ev_enabled::text, ARRAY[pg_catalog.pg_get_ruledef(r.oid)] \
         FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE r.rulename <> '_RETURN' AND ",
        users!("n"),
        " AND ",
        own!("pg_class", "c.oid")
    ),
    concat!(
        "SELECT 'policy', pg_catalog.quote_ident(p.polname) || ' on table ' || ",
        name!("n", "c.relname"),
        ", pg_catalog.concat_ws(' ', p.polcmd, p.polpermissive, \
         (SELECT pg_catalog.array_agg(g ORDER BY g COLLATE \"C\") FROM (SELECT CASE r WHEN 0 THEN 'public' ELSE pg_catalog.pg_get_userbyid(r)::text END FROM pg_catalog.unnest(p.polroles) r) x (g))), \
         ARRAY[pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)] \
         FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE ",
        users!("n"),
        " AND ",
        own!("pg_class", "c.oid")
    ),
    concat!(
        "SELECT CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END, \
         ",
        name!("n", "p.proname"),
        " || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')', \
         pg_catalog.concat_ws(' ', p.prokind, pg_catalog.pg_get_userbyid(p.proowner), (SELECT lanname FROM pg_catalog.pg_language WHERE oid = p.prolang), p.prosecdef, p.proleakproof, \
         p.proisstrict, p.proretset, p.provolatile, p.proparallel, p.procost, p.prorows, p.proconfig, pg_catalog.pg_get_function_arguments(p.oid), \
         pg_catalog.pg_get_function_result(p.oid), p.probin, p.prosrc), ARRAY[pg_catalog.pg_get_function_sqlbody(p.oid)] \
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE ",
        users!("n"),
        " AND ",
        own!("pg_proc", "p.oid")
    ),
    concat!(
        "SELECT 'statistics', ",
        name!("n", "s.stxname"),
        ", '', ARRAY[pg_catalog.pg_get_statisticsobjdef(s.oid)] FROM pg_catalog.pg_statistic_ext s \
         JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE ",
        users!("n"),
        " AND ",
        own!("pg_statistic_ext", "s.oid")
    ),
];

/// The lines of a database's inventory, sorted.
pub(super) async fn take(session: &Session) -> Result<String, PostgresError> {
    let mut lines = Vec::new();
    let plain =
        PLAIN.iter().map(|one| format!("SELECT k::text, o::text, p::text, '{{}}'::text[] FROM ({one}) i (k, o, p)"));
    let defined =
        DEFINED.iter().map(|one| format!("SELECT k::text, o::text, p::text, d::text[] FROM ({one}) i (k, o, p, d)"));
    for statement in plain.chain(defined) {
        let what = format!("taking the inventory of database `{}`", session.database);
        for row in session.query(&statement, &[]).await.map_err(query(what))? {
            let column = |n| row.get::<_, Option<&str>>(n).unwrap_or_default();
            let definitions: Vec<Option<&str>> = row.get(3);
            let columns = [column(0), column(1), column(2)]
                .into_iter()
                .chain(definitions.into_iter().map(Option::unwrap_or_default));
            lines.push(columns.map(escaped).collect::<Vec<_>>().join("\t") + "\n");
        }
    }
    lines.sort_unstable();
    Ok(lines.concat())
}

/// One line, whatever is in it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

/// An object that is another in two inventories.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Differing {
    pub(super) difference: Difference,
    /// Where it is there on both sides, and all but its definitions is the same: the captured definitions that differ.
    pub(super) definitions: Option<Vec<String>>,
}

/// What an inventory holds and the other does not, by object.
pub(super) fn differences(was: &str, is: &str) -> Vec<Differing> {
    fn by_object(text: &str) -> BTreeMap<String, Vec<Vec<&str>>> {
        let mut objects: BTreeMap<String, Vec<Vec<&str>>> = BTreeMap::new();
        for line in text.lines() {
            let mut columns = line.split('\t');
            let (kind, name) = (columns.next().unwrap_or_default(), columns.next().unwrap_or_default());
            objects.entry(format!("{kind} {name}")).or_default().push(columns.collect());
        }
        objects
    }
    let (was, is) = (by_object(was), by_object(is));
    let mut found = Vec::new();
    let mut differs = |object: &String, what: &str, definitions| {
        let difference = Difference { object: object.clone(), what: what.to_owned() };
        found.push(Differing { difference, definitions });
    };
    for (object, captured) in &was {
        match is.get(object) {
            None => differs(object, "is not there", None),
            Some(now) if now == captured => {}
            Some(now) => differs(object, "is another than was captured", other_definitions(captured, now)),
        }
    }
    for object in is.keys().filter(|object| !was.contains_key(*object)) {
        differs(object, "is there and was not captured", None);
    }
    found
}

/// The captured definitions that are others now, if those are all that differs. One that is only on one side is no other print of it.
fn other_definitions(was: &[Vec<&str>], is: &[Vec<&str>]) -> Option<Vec<String>> {
    if was.len() != is.len() {
        return None;
    }
    let mut others = Vec::new();
    for (was, is) in was.iter().zip(is) {
        if was.len() != is.len() || was.first() != is.first() {
            return None;
        }
        let differ: Vec<_> = was.iter().zip(is).filter(|(was, is)| was != is).collect();
        if differ.iter().any(|(was, is)| was.is_empty() || is.is_empty()) {
            return None;
        }
        others.extend(differ.into_iter().map(|(was, _)| unescaped(was)));
    }
    Some(others)
}

fn unescaped(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text.chars());
    while let Some(one) = rest.next() {
        plain.push(match one {
            '\\' => match rest.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                other => other.unwrap_or('\\'),
            },
            one => one,
        });
    }
    plain
}

/// The inventory, had these materialized views not been filled: the last of their properties is whether they are.
pub(super) fn without_content(inventory: &str, views: &[Name]) -> String {
    let is_one = |name: &str| {
        let name = sql::statements(name).first().and_then(|name| name.qualified_name(0));
        name.is_some_and(|name| views.contains(&name))
    };
    let line = |line: &str| {
        let mut fields: Vec<&str> = line.split('\t').collect();
        if let [kind, name, properties, ..] = &mut fields[..]
            && *kind == "materialized view"
            && is_one(name)
            && let Some(others) = properties.strip_suffix(" t")
        {
            let unfilled = format!("{others} f");
            fields[2] = &unfilled;
            return fields.join("\t") + "\n";
        }
        fields.join("\t") + "\n"
    };
    inventory.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_changed_or_too_much_is_named() {
        let was = "constraint\tc of table public.t\tc CHECK (a)\ntable\tpublic.t\tr\ntable\tpublic.u\tr\n";
        let is = "table\tpublic.t\tp\ntable\tpublic.u\tr\ntable\tpublic.v\tr\n";
        let told: Vec<String> = differences(was, is)
            .into_iter()
            .map(|one| format!("{} {}", one.difference.object, one.difference.what))
            .collect();
        assert_eq!(
            told,
            [
                "constraint c of table public.t is not there",
                "table public.t is another than was captured",
                "table public.v is there and was not captured"
            ]
        );
        assert!(differences(was, was).is_empty());
        // All but a definition is the same.
        let was = "constraint\tc\tc f\tCHECK (a\\tb)\nindex\ti\tt\tCREATE INDEX i\n";
        let is = "constraint\tc\tc f\tCHECK (c)\nindex\ti\tf\tCREATE INDEX j\n";
        let definitions: Vec<_> = differences(was, is).into_iter().map(|one| one.definitions).collect();
        assert_eq!(definitions, [Some(vec!["CHECK (a\tb)".to_owned()]), None]);
        // A condition that is gone, and one that came.
        for (was, is) in
            [("policy\tp\tr\t(a)\t\n", "policy\tp\tr\t\t\n"), ("policy\tp\tr\t\t\n", "policy\tp\tr\t\t(a)\n")]
        {
            assert_eq!(differences(was, is).into_iter().map(|one| one.definitions).collect::<Vec<_>>(), [None]);
        }
        assert_eq!(escaped("a\tb\nc\\"), "a\\tb\\nc\\\\");
    }
}
