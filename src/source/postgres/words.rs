//! What a server says of an error, without what it may repeat of rows: errors go into logs, and logs to people who may not read
//! the database. The server's own log has the whole of it.
//!
//! Errors are told apart by SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use std::borrow::Cow;

use super::error::State;

/// An error or warning, as the protocol has it.
#[derive(Default)]
struct Told<'a> {
    severity: &'a str,
    code: &'a str,
    message: &'a str,
    detail: Option<&'a str>,
    hint: Option<&'a str>,
    context: Option<&'a str>,
    /// The function of the server's source that raised it.
    routine: Option<&'a str>,
}

impl Told<'_> {
    /// Are these the words of a function that somebody wrote, and that can say anything? Classes P0 (PL/pgSQL) and 38 (other
    /// languages); RAISE can claim any other code.
    fn is_by_a_function(&self) -> bool {
        self.code.starts_with("P0") || self.code.starts_with("38") || self.routine == Some("exec_stmt_raise")
    }

    fn message(&self) -> Cow<'_, str> {
        if self.is_by_a_function() {
            return format!("a function raised {} (its words are in the server's log)", self.code).into();
        }
        // Data exceptions quote the value. The quotation marks depend on the server's language.
        match self.message.find(['"', '\'', '«', '»', '„', '“', '”']) {
            Some(at) if self.code.starts_with("22") => format!("{}… ({})", &self.message[..at], self.code).into(),
            _ => self.message.into(),
        }
    }

    /// "Key (a)=(1) is duplicated", "Failing row contains (1, 2)": of classes 22, 23 and 44.
    fn detail(&self) -> Option<&str> {
        let repeats = self.is_by_a_function() || ["22", "23", "44"].iter().any(|class| self.code.starts_with(class));
        self.detail.filter(|_| !repeats)
    }

    /// Of the lines of a context those that say where, as far as they do: `COPY t, line 3: "the line"` goes on with the row,
    /// whatever the error is.
    fn context(&self) -> Option<String> {
        let place = |line: &str| match line.split_once(": ") {
            Some((place, _)) if line.starts_with("COPY ") => Some(place.to_owned()),
            _ if line.starts_with("COPY ") || line.starts_with("PL/pgSQL function ") => Some(line.to_owned()),
            _ => None,
        };
        let places: Vec<String> = self.context?.lines().filter_map(place).collect();
        (!places.is_empty()).then(|| places.join(", "))
    }

    fn shown(&self) -> String {
        let mut text = format!("{}: {}", self.severity, self.message());
        let hint = self.hint.filter(|_| !self.is_by_a_function());
        let extras = [("detail", self.detail().map(Cow::from)), ("hint", hint.map(Cow::from))];
        for (name, extra) in extras.into_iter().chain([("context", self.context().map(Cow::from))]) {
            if let Some(extra) = extra {
                text.push_str(&format!("; {name}: {}", extra.replace('\n', " ")));
            }
        }
        text
    }
}

/// The server's or system's words for an error with its whole chain of causes: `Display` of tokio-postgres leaves them out.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let told = Told {
            severity: db.severity(),
            code: db.code().code(),
            message: db.message(),
            detail: db.detail(),
            hint: db.hint(),
            context: db.where_(),
            routine: db.routine(),
        };
        return told.shown();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// What `psql` with `VERBOSITY=verbose` wrote to stderr: `psql:<stdin>:3: ERROR:  23505: the message`, then lines of DETAIL, HINT,
/// CONTEXT, LOCATION and others. A line that is none of these goes on with one that may repeat a row.
pub(super) fn psql_words(stderr: &str) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut lines = stderr.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((place, mut told)) = psql_error(line) else {
            if line.starts_with("psql:") {
                shown.push(line.to_owned());
            }
            continue;
        };
        while let Some(extra) = lines.next_if(|line| !line.starts_with("psql:")) {
            if let Some((name, text)) = extra.split_once(":  ") {
                match name {
                    "DETAIL" => told.detail = Some(text),
                    "HINT" => told.hint = Some(text),
                    "CONTEXT" => told.context = Some(text),
                    "LOCATION" => told.routine = text.split(',').next(),
                    _ => {}
                }
            }
        }
        shown.push(format!("{place}{}", told.shown()));
    }
    shown.join("\n")
}

/// The SQLSTATE of the first error in what `psql` wrote.
pub(super) fn first_state(stderr: &str) -> Option<State> {
    let error = |line| psql_error(line).filter(|(_, told)| matches!(told.severity, "ERROR" | "FATAL" | "PANIC"));
    stderr.lines().find_map(error).and_then(|(_, told)| told.code.as_bytes().try_into().ok())
}

/// `psql:<stdin>:3: ` and the error behind it.
fn psql_error(line: &str) -> Option<(&str, Told<'_>)> {
    let (before, rest) = line.strip_prefix("psql:")?.split_once(":  ")?;
    let (code, message) = rest.split_once(": ")?;
    let is_code = code.len() == 5 && code.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    let place = before.rsplit_once(": ").map_or(0, |(place, _)| "psql:".len() + place.len() + 2);
    let severity = line[place.max("psql:".len())..].split(':').next()?;
    is_code.then(|| (&line[..place], Told { severity, code, message, ..Told::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_row_is_repeated() {
        let error = |code, message, detail, context| {
            Told { severity: "ERROR", code, message, detail, context, ..Told::default() }.shown()
        };
        for (shown, expected) in [
            (
                error("23505", "could not create unique index \"i\"", Some("Key (a)=(secret) is duplicated."), None),
                "ERROR: could not create unique index \"i\"",
            ),
            (
                error(
                    "23514",
                    "new row for relation \"t\" violates check constraint \"c\"",
                    Some("Failing row contains (secret)."),
                    Some("COPY t, line 3: \"secret: secret\""),
                ),
                "ERROR: new row for relation \"t\" violates check constraint \"c\"; context: COPY t, line 3",
            ),
            (
                error(
                    "22P02",
                    "invalid input syntax for type integer: \"secret\"",
                    None,
                    Some("JSON data, line 1: secret\nCOPY t, line 3, column a: \"secret\""),
                ),
                "ERROR: invalid input syntax for type integer: … (22P02); context: COPY t, line 3, column a",
            ),
            (
                error("22P02", "ungültige Eingabesyntax: »secret«", None, None),
                "ERROR: ungültige Eingabesyntax: … (22P02)",
            ),
            (
                error("57014", "canceling statement due to user request", None, Some("COPY t, line 9: \"secret\"")),
                "ERROR: canceling statement due to user request; context: COPY t, line 9",
            ),
            (
                error("P0001", "bad secret", Some("secret"), Some("PL/pgSQL function f() line 1 at RAISE")),
                "ERROR: a function raised P0001 (its words are in the server's log); \
                 context: PL/pgSQL function f() line 1 at RAISE",
            ),
            (
                error("22023", "new encoding (LATIN1) is incompatible with that of the template", None, None),
                "ERROR: new encoding (LATIN1) is incompatible with that of the template",
            ),
            (
                error(
                    "55006",
                    "database \"a\" is being accessed by other users",
                    Some("There is 1 other session."),
                    None,
                ),
                "ERROR: database \"a\" is being accessed by other users; detail: There is 1 other session.",
            ),
        ] {
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn what_psql_says_is_told_in_the_same_way() {
        let stderr = "psql:<stdin>:27: ERROR:  23505: could not create unique index \"i\"\n\
             DETAIL:  Key (a)=(two\nlines: secret) is duplicated.\nSCHEMA NAME:  public\nLOCATION:  f, tuplesort.c:4266";
        assert_eq!(psql_words(stderr), "psql:<stdin>:27: ERROR: could not create unique index \"i\"");
        assert_eq!(first_state(stderr), Some(*b"23505"));
        let stderr = "psql:<stdin>:3: WARNING:  01000: something\npsql:<stdin>:9: ERROR:  23514: my secret\nHINT:  secret\n\
             LOCATION:  exec_stmt_raise, pl_exec.c:3923";
        assert_eq!(
            psql_words(stderr),
            "psql:<stdin>:3: WARNING: something\n\
             psql:<stdin>:9: ERROR: a function raised 23514 (its words are in the server's log)"
        );
        let refused = "psql: error: connection to server at \"127.0.0.1\", port 5 failed: FATAL:  no";
        assert_eq!(psql_words(refused), refused);
    }
}
