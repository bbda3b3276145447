//! Roles: what `pg_dumpall --globals-only` wrote, without what would change a role that the target has already.

use std::collections::BTreeSet;

use super::{
    connect::Session,
    error::{PostgresError, query},
    sql::{self, Statement},
};

/// The statements to run, and the roles that were left as they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RolePlan {
    pub(super) create: Vec<String>,
    pub(super) kept: Vec<String>,
    pub(super) statements: Vec<String>,
}

/// The role that a statement changes, if it is a statement on a role. A membership changes the member.
fn changed_role<'a>(statement: &'a Statement<'_>) -> Option<&'a str> {
    if statement.begins(&["create", "role"]) || statement.begins(&["alter", "role"]) {
        statement.name(2)
    } else if statement.begins(&["comment", "on", "role"]) || statement.begins(&["security", "label"]) {
        statement.name_after("role")
    } else {
        None
    }
}

/// Decides what of `globals` a server with these roles gets.
pub(super) fn plan(globals: &str, existing: &BTreeSet<String>) -> RolePlan {
    let mut plan = RolePlan::default();
    for statement in sql::statements(globals) {
        let role = changed_role(&statement);
        let runs = match role {
            Some(role) => !existing.contains(role),
            // `GRANT group TO member …`: skipped where both were there before, for then it is theirs to decide.
            None if statement.begins(&["grant"]) && statement.name_after("on").is_none() => {
                let group = statement.name(1).unwrap_or_default();
                let member = statement.name_after("to").unwrap_or_default();
                !(existing.contains(group) && existing.contains(member))
            }
            // Tablespaces need a folder on the target's disk, parameters' grants a decision of its owner.
            None => false,
        };
        if statement.begins(&["create", "role"]) {
            let list = if runs { &mut plan.create } else { &mut plan.kept };
            list.extend(role.map(str::to_owned));
        }
        if runs {
            plan.statements.push(statement.text.to_owned());
        }
    }
    plan
}

/// All of `globals` for a throwaway server whose first superuser is `bootstrap`: what it says of roles, memberships and parameters. Not what
/// it says of tablespaces, which a throwaway server never gets, nor that `bootstrap` is to be created, nor that it may not log in, since
/// it is the role that we are; with `keep`, nothing that changes it.
pub(super) fn whole(globals: &str, bootstrap: &str, keep: bool) -> Vec<String> {
    let statements = sql::statements(globals);
    let made = |role: &str| statements.iter().any(|one| one.begins(&["create", "role"]) && one.name(2) == Some(role));
    let wanted = |statement: &Statement<'_>| {
        let role = changed_role(statement);
        let creates = statement.begins(&["create", "role"]) && role == Some(bootstrap);
        // Its memberships in the server's own roles too: those would stay when all that is made here is gone.
        let is_membership = statement.begins(&["grant"]) && statement.name_after("on").is_none();
        let joins =
            is_membership && statement.name_after("to") == Some(bootstrap) && !statement.name(1).is_some_and(made);
        let kept = keep && (role == Some(bootstrap) || joins);
        !creates && !kept && !is_setting(statement) && !is_on_tablespace(statement)
    };
    let text = |statement: &Statement<'_>| match statement.begins(&["alter", "role"])
        && changed_role(statement) == Some(bootstrap)
    {
        true => statement.text.replacen(" NOLOGIN ", " LOGIN ", 1),
        false => statement.text.to_owned(),
    };
    statements.iter().filter(|statement| wanted(statement)).map(text).collect()
}

/// The roles that these statements make.
pub(super) fn created(statements: &[String]) -> Vec<String> {
    let of = |text: &String| {
        let statements = sql::statements(text);
        let creates = statements.iter().find(|statement| statement.begins(&["create", "role"]))?;
        creates.name(2).map(str::to_owned)
    };
    statements.iter().filter_map(of).collect()
}

/// `SET …` and `SELECT pg_catalog.set_config(…)`: of the session, and no part of what there is.
pub(super) fn is_setting(statement: &Statement<'_>) -> bool {
    statement.begins(&["set"]) || statement.begins(&["select"])
}

/// Does it make or change a tablespace?
pub(super) fn is_on_tablespace(statement: &Statement<'_>) -> bool {
    statement.begins(&["create", "tablespace"])
        || statement.begins(&["alter", "tablespace"])
        || statement.begins(&["comment", "on", "tablespace"])
        || (statement.begins(&["grant"]) || statement.begins(&["revoke"]))
            && statement.name_after("on").is_some_and(|word| word == "tablespace")
}

/// The roles of a server.
pub(super) async fn existing(session: &Session) -> Result<BTreeSet<String>, PostgresError> {
    let rows = session
        .query("SELECT rolname::text FROM pg_catalog.pg_roles", &[])
        .await
        .map_err(query("listing the target's roles"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Runs statements on roles in one transaction.
pub(super) async fn apply(session: &Session, statements: &[String]) -> Result<(), PostgresError> {
    if statements.is_empty() {
        return Ok(());
    }
    let failed = || query("beginning the creation of roles");
    session.batch_execute("BEGIN").await.map_err(failed())?;
    for statement in statements {
        // A statement may hold a password's hash: only its first words are ever shown.
        let words: Vec<&str> = statement.split_whitespace().take(3).collect();
        session.batch_execute(statement).await.map_err(query(format!("creating roles ({} …)", words.join(" "))))?;
    }
    session.batch_execute("COMMIT").await.map_err(query("creating roles"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBALS: &str = "SET default_transaction_read_only = off;\nCREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'SCRAM';\n\
        CREATE ROLE \"We;ird\";\nALTER ROLE \"We;ird\" WITH NOLOGIN;\nCREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER PASSWORD 'x';\n\
        ALTER ROLE app SET search_path TO 'a';\nALTER ROLE postgres SET work_mem TO '1GB';\nCOMMENT ON ROLE app IS 'x';\n\
        GRANT \"We;ird\" TO app GRANTED BY postgres;\nGRANT pg_monitor TO postgres;\nGRANT app TO postgres;\n\
        CREATE TABLESPACE fast OWNER postgres LOCATION '/fast';\nGRANT SET ON PARAMETER work_mem TO app;\n";

    #[test]
    fn existing_roles_are_left_as_they_are() {
        let existing = ["postgres", "pg_monitor"].map(str::to_owned).into();
        let plan = plan(GLOBALS, &existing);
        assert_eq!(plan.create, ["app", "We;ird"]);
        assert_eq!(plan.kept, ["postgres"]);
        let told = plan.statements.join("\n");
        assert!(
            !told.contains("ALTER ROLE postgres") && !told.contains("pg_monitor") && !told.contains("TABLESPACE"),
            "{told}"
        );
        assert!(told.contains("ALTER ROLE app SET") && told.contains("COMMENT ON ROLE app"), "{told}");
        assert!(told.contains("GRANT \"We;ird\" TO app") && told.contains("GRANT app TO postgres"), "{told}");
    }

    #[test]
    fn a_throwaway_server_gets_everything_but_tablespaces() {
        let told = whole(GLOBALS, "postgres", false).join("\n");
        for (part, there) in [
            ("CREATE ROLE app", true),
            ("ALTER ROLE postgres WITH SUPERUSER", true),
            ("GRANT pg_monitor TO postgres", true),
            ("GRANT SET ON PARAMETER", true),
            ("CREATE ROLE postgres", false),
            ("TABLESPACE", false),
            ("default_transaction_read_only", false),
        ] {
            assert_eq!(told.contains(part), there, "{part}: {told}");
        }
        let kept = whole(GLOBALS, "postgres", true).join("\n");
        assert!(!kept.contains("ALTER ROLE postgres") && kept.contains("GRANT app TO postgres"), "{kept}");
        assert!(!kept.contains("pg_monitor"), "{kept}");
    }
}
