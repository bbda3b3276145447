//! Just enough SQL: quoting, and taking apart what `pg_dump` and `pg_dumpall` wrote.
//!
//! Lexical rules: PostgreSQL documentation, chapter 4.1. `standard_conforming_strings` is on, as both programs set it.

/// An identifier in double quotes.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `"schema"."name"`.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A string constant.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// A keyword or unquoted identifier, in lower case.
    Word(String),
    /// A quoted identifier, without its quotes.
    Ident(String),
    /// Anything else: strings, numbers, operators.
    Other,
    /// `;`
    Semicolon,
    /// A line of psql's own, from its backslash to its end.
    Meta,
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

/// Where the token ends that is closed by `quote`, doubled inside; with `backslash`, that escapes too.
fn quoted_end(sql: &[u8], start: usize, quote: u8, backslash: bool) -> usize {
    let mut at = start + 1;
    while at < sql.len() {
        match sql[at] {
            b'\\' if backslash => at += 1,
            b if b == quote && sql.get(at + 1) == Some(&quote) => at += 1,
            b if b == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    sql.len()
}

/// Where the comment ends that begins here; they nest.
fn comment_end(sql: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start + 2, 1);
    while at < sql.len() && depth > 0 {
        match sql.get(at..at + 2) {
            Some(b"/*") => (at, depth) = (at + 2, depth + 1),
            Some(b"*/") => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80
}

fn tokens(sql: &str) -> Vec<Token> {
    let b = sql.as_bytes();
    let mut tokens: Vec<Token> = Vec::new();
    let mut at = 0;
    while at < b.len() {
        let start = at;
        let at_line_start = start == 0 || b[start - 1] == b'\n';
        let kind = match b[start] {
            c if c.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if b.get(start + 1) == Some(&b'-') => {
                at = memchr::memchr(b'\n', &b[start..]).map_or(b.len(), |n| start + n);
                continue;
            }
            b'/' if b.get(start + 1) == Some(&b'*') => {
                at = comment_end(b, start);
                continue;
            }
            b'\\' if at_line_start && tokens.last().is_none_or(|t| matches!(t.kind, Kind::Semicolon | Kind::Meta)) => {
                at = memchr::memchr(b'\n', &b[start..]).map_or(b.len(), |n| start + n);
                Kind::Meta
            }
            b';' => {
                at += 1;
                Kind::Semicolon
            }
            b'\'' => {
                at = quoted_end(b, start, b'\'', false);
                Kind::Other
            }
            b'e' | b'E' if b.get(start + 1) == Some(&b'\'') => {
                at = quoted_end(b, start + 1, b'\'', true);
                Kind::Other
            }
            b'"' => {
                at = quoted_end(b, start, b'"', false);
                // The closing quote may be missing, and what stands in its place be longer than a byte.
                let inner = &sql[start + 1..at];
                Kind::Ident(inner.strip_suffix('"').unwrap_or(inner).replace("\"\"", "\""))
            }
            b'$' => {
                let tag_len = b[start + 1..].iter().take_while(|c| is_word(**c) && **c != b'$').count();
                if b.get(start + 1 + tag_len) == Some(&b'$') {
                    let tag = &sql[start..start + tag_len + 2];
                    let body = start + tag.len();
                    at = sql[body..].find(tag).map_or(b.len(), |n| body + n + tag.len());
                } else {
                    at += 1;
                }
                Kind::Other
            }
            c if is_word(c) => {
                at += b[start..].iter().take_while(|c| is_word(**c)).count();
                Kind::Word(sql[start..at].to_ascii_lowercase())
            }
            _ => {
                at += 1;
                Kind::Other
            }
        };
        tokens.push(Token { kind, start, end: at });
    }
    tokens
}

/// One statement of a script.
#[derive(Clone, Debug)]
pub(super) struct Statement<'a> {
    /// Its text, without the semicolon.
    pub(super) text: &'a str,
    tokens: Vec<Token>,
    offset: usize,
}

/// What keeps a semicolon from ending a statement, as psql sees it: parentheses, as a rule with several actions has, and the body of a
/// function in SQL, `BEGIN ATOMIC …; END`.
#[derive(Default)]
struct Nesting {
    parentheses: usize,
    blocks: usize,
    /// The first words of the statement, and the last.
    words: Vec<String>,
    last: String,
}

impl Nesting {
    fn see(&mut self, token: &Token, text: &str) {
        match (&token.kind, text) {
            (Kind::Other, "(") => self.parentheses += 1,
            (Kind::Other, ")") => self.parentheses = self.parentheses.saturating_sub(1),
            (Kind::Word(word), _) => {
                if self.words.len() < 4 {
                    self.words.push(word.clone());
                }
                let mut first = self.words.iter().filter(|word| !["or", "replace"].contains(&word.as_str()));
                let is_routine = first.next().is_some_and(|word| word == "create")
                    && first.next().is_some_and(|word| ["function", "procedure"].contains(&word.as_str()));
                match word.as_str() {
                    "atomic" if is_routine && self.last == "begin" => self.blocks += 1,
                    "case" if self.blocks > 0 => self.blocks += 1,
                    "end" if self.blocks > 0 => self.blocks -= 1,
                    _ => {}
                }
                self.last.clone_from(word);
            }
            _ => {}
        }
    }

    fn is_closed(&self) -> bool {
        self.parentheses == 0 && self.blocks == 0
    }
}

/// The statements of a script; psql's own lines and comments are left out.
pub(super) fn statements(sql: &str) -> Vec<Statement<'_>> {
    let mut found = Vec::new();
    let mut open: Vec<Token> = Vec::new();
    let mut close = |open: &mut Vec<Token>| {
        if let (Some(first), Some(last)) = (open.first(), open.last()) {
            let (start, end) = (first.start, last.end);
            found.push(Statement { text: &sql[start..end], tokens: std::mem::take(open), offset: start });
        }
    };
    let mut nesting = Nesting::default();
    for token in tokens(sql) {
        match token.kind {
            Kind::Semicolon if nesting.is_closed() => {
                close(&mut open);
                nesting = Nesting::default();
            }
            Kind::Meta => {}
            _ => {
                nesting.see(&token, &sql[token.start..token.end]);
                open.push(token);
            }
        }
    }
    close(&mut open);
    found
}

/// The statement that ends on this line of the script, counted from 1, or is the first that ends behind it.
pub(super) fn statement_at(sql: &str, line: usize) -> Option<Statement<'_>> {
    let mut from = 0;
    let mut lines = 1;
    statements(sql).into_iter().find(|statement| {
        let end = statement.offset + statement.text.len();
        lines += memchr::memchr_iter(b'\n', &sql.as_bytes()[from..end]).count();
        from = end;
        lines >= line
    })
}

/// A text's tokens, each followed by a space: what has the same ones reads the same, however it is laid out.
pub(super) fn normal(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len());
    for token in tokens(sql).iter().filter(|token| !matches!(token.kind, Kind::Semicolon | Kind::Meta)) {
        text.push_str(&sql[token.start..token.end]);
        text.push(' ');
    }
    text
}

/// A statement on one line, without the values and comments in it: for people who may see what is done and not with what.
pub(super) fn without_values(sql: &str) -> String {
    let (mut text, mut end) = (String::with_capacity(sql.len()), 0);
    // Where strings end that have a backslash depends on a setting of whoever wrote them.
    let tokens = tokens(sql);
    let sure = match sql.contains('\\') {
        true => tokens.iter().take_while(|token| matches!(token.kind, Kind::Word(_))).count(),
        false => tokens.len(),
    };
    if sure < tokens.len() {
        return without_values(&sql[..tokens[..sure].last().map_or(0, |token| token.end)]) + " …";
    }
    for token in tokens {
        if end != token.start && !text.is_empty() {
            text.push(' ');
        }
        end = token.end;
        let shown = &sql[token.start..token.end];
        let is_value = match token.kind {
            Kind::Word(_) => shown.starts_with(|c: char| c.is_ascii_digit()),
            Kind::Other => shown.contains('\'') || (shown.len() > 1 && shown.starts_with('$')),
            _ => false,
        };
        text.push_str(if is_value { "…" } else { shown });
    }
    text
}

/// A name with its schema.
pub(super) type Name = (String, String);

/// A primary key or unique constraint, as the index that it is and the statement that makes the constraint of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyConstraint {
    pub(super) table: Name,
    pub(super) create_index: String,
    pub(super) attach: String,
}

/// Words behind which a definition follows.
const BEFORE_A_DEFINITION: [&str; 7] = ["as", "check", "default", "using", "when", "where", "with"];

/// A script of `pg_dump` in which what would be made in one of these tablespaces is made in the default one.
pub(super) fn without_tablespaces(sql: &str, missing: &[String]) -> String {
    let mut kept = String::with_capacity(sql.len());
    let mut from = 0;
    let is_missing = |statement: &&Statement<'_>| {
        statement.begins(&["set", "default_tablespace"])
            && statement.name(3).is_some_and(|name| missing.iter().any(|one| one == name))
    };
    for statement in statements(sql).iter().filter(is_missing) {
        kept.push_str(&sql[from..statement.offset]);
        kept.push_str("SET default_tablespace = ''");
        from = statement.offset + statement.text.len();
    }
    kept.push_str(&sql[from..]);
    kept
}

impl Statement<'_> {
    /// Does it begin with these words?
    pub(super) fn begins(&self, words: &[&str]) -> bool {
        words.len() <= self.tokens.len()
            && self.tokens.iter().zip(words).all(|(token, word)| matches!(&token.kind, Kind::Word(w) if w == word))
    }

    /// What it makes or changes, in its own words: all of it up to the first parenthesis or to what a definition follows.
    pub(super) fn subject(&self) -> &str {
        let ends = |token: &Token| match &token.kind {
            Kind::Word(word) => BEFORE_A_DEFINITION.contains(&word.as_str()),
            Kind::Other => self.text[token.start - self.offset..].starts_with('('),
            _ => false,
        };
        let end =
            self.tokens.iter().find(|token| ends(token)).map_or(self.text.len(), |token| token.start - self.offset);
        self.text[..end].trim_end()
    }

    /// The identifier that is the `n`-th token.
    pub(super) fn name(&self, n: usize) -> Option<&str> {
        match &self.tokens.get(n)?.kind {
            Kind::Word(name) | Kind::Ident(name) => Some(name),
            _ => None,
        }
    }

    /// The identifier behind the first of this word.
    pub(super) fn name_after(&self, word: &str) -> Option<&str> {
        let at = self.tokens.iter().position(|token| matches!(&token.kind, Kind::Word(w) if w == word))?;
        self.name(at + 1)
    }

    fn is_word(&self, n: usize, word: &str) -> bool {
        matches!(self.tokens.get(n), Some(Token { kind: Kind::Word(w), .. }) if w == word)
    }

    fn token_text(&self, n: usize) -> &str {
        self.tokens.get(n).map_or("", |token| &self.text[token.start - self.offset..token.end - self.offset])
    }

    /// `schema.name` at the `n`-th token.
    pub(super) fn qualified_name(&self, n: usize) -> Option<Name> {
        (self.token_text(n + 1) == ".").then_some(())?;
        Some((self.name(n)?.to_owned(), self.name(n + 2)?.to_owned()))
    }

    /// Whose index it creates: `CREATE [UNIQUE] INDEX name ON schema.table USING …`. `None` for others, and for an index of a partitioned table,
    /// which is `ON ONLY`.
    pub(super) fn index_on(&self) -> Option<Name> {
        let at = if self.begins(&["create", "unique"]) { 2 } else { 1 };
        (self.begins(&["create"]) && self.is_word(at, "index") && self.is_word(at + 2, "on")).then_some(())?;
        (!self.is_word(at + 3, "only")).then(|| self.qualified_name(at + 3)).flatten()
    }

    /// The table and where its constraint's name is: `ALTER TABLE [ONLY] schema.table ADD CONSTRAINT name …`.
    fn added_constraint(&self) -> Option<(Name, usize)> {
        self.begins(&["alter", "table"]).then_some(())?;
        let at = if self.is_word(2, "only") { 3 } else { 2 };
        let table = self.qualified_name(at)?;
        (self.is_word(at + 3, "add") && self.is_word(at + 4, "constraint")).then_some((table, at + 5))
    }

    /// The table that it gives a constraint of this kind to, in words: `["primary", "key"]`.
    pub(super) fn constraint_on(&self, kind: &[&str]) -> Option<Name> {
        let (table, name) = self.added_constraint()?;
        kind.iter().enumerate().all(|(n, word)| self.is_word(name + 1 + n, word)).then_some(table)
    }

    /// Has it this word, outside of quotes?
    pub(super) fn has_word(&self, word: &str) -> bool {
        self.tokens.iter().any(|token| matches!(&token.kind, Kind::Word(w) if w == word))
    }

    /// The materialized view that it fills: `REFRESH MATERIALIZED VIEW schema.view`.
    pub(super) fn refreshes(&self) -> Option<Name> {
        self.begins(&["refresh", "materialized", "view"]).then(|| self.qualified_name(3)).flatten()
    }

    /// The table that a foreign key leads to: `… REFERENCES schema.table(…)`.
    pub(super) fn references(&self) -> Option<Name> {
        let at = self.tokens.iter().position(|token| matches!(&token.kind, Kind::Word(w) if w == "references"))?;
        self.qualified_name(at + 1)
    }

    /// A primary key or unique constraint over columns, with nothing in it that only the whole statement can say.
    pub(super) fn key_constraint(&self) -> Option<KeyConstraint> {
        let (table, name) = self.added_constraint()?;
        let mut at = name + 1;
        let is_primary = self.is_word(at, "primary") && self.is_word(at + 1, "key");
        let kind = if is_primary { "PRIMARY KEY" } else { "UNIQUE" };
        at += match (is_primary, self.is_word(at, "unique")) {
            (true, _) => 2,
            (_, true) => 1,
            _ => return None,
        };
        // Options of the index: everything up to what is of the constraint.
        let index_ends = |n: usize| {
            n >= self.tokens.len() || ["deferrable", "not", "initially"].iter().any(|word| self.is_word(n, word))
        };
        let mut distinct = "";
        if self.is_word(at, "nulls") && self.is_word(at + 1, "not") && self.is_word(at + 2, "distinct") {
            (distinct, at) = (" NULLS NOT DISTINCT", at + 3);
        }
        let columns = self.parenthesis(at)?;
        // `WITHOUT OVERLAPS` is no plain list of columns.
        let is_list = (at + 1..columns - 1).all(|n| {
            (n - at).is_multiple_of(2) == (self.token_text(n) == ",")
                && (self.name(n).is_some() || self.token_text(n) == ",")
        });
        is_list.then_some(())?;
        let mut end = columns;
        while !index_ends(end) {
            end = if self.token_text(end) == "(" { self.parenthesis(end)? } else { end + 1 };
        }
        let of_constraint = self.between(end, self.tokens.len());
        // `INCLUDE (…)` comes before NULLS NOT DISTINCT, and that before WITH.
        let list_end = if self.is_word(columns, "include") { self.parenthesis(columns + 1)? } else { columns };
        let (list, options) = (self.between(at, list_end), self.between(list_end, end));
        let (quoted, on) = (ident(self.name(name)?), qualified(&table.0, &table.1));
        Some(KeyConstraint {
            create_index: format!("CREATE UNIQUE INDEX {quoted} ON {on} USING btree {list}{distinct} {options}")
                .trim_end()
                .to_owned(),
            attach: format!(
                "ALTER TABLE ONLY {on} ADD CONSTRAINT {quoted} {kind} USING INDEX {quoted} {of_constraint}"
            )
            .trim_end()
            .to_owned(),
            table,
        })
    }

    /// The token behind the parenthesis that opens at the `n`-th.
    fn parenthesis(&self, n: usize) -> Option<usize> {
        (self.token_text(n) == "(").then_some(())?;
        let mut depth = 0;
        for at in n..self.tokens.len() {
            match self.token_text(at) {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(at + 1);
            }
        }
        None
    }

    /// The text of the tokens `from..to`.
    fn between(&self, from: usize, to: usize) -> &str {
        match (self.tokens.get(from), to.checked_sub(1).and_then(|last| self.tokens.get(last))) {
            (Some(first), Some(last)) if from < to => &self.text[first.start - self.offset..last.end - self.offset],
            _ => "",
        }
    }

    /// Does it speak of this database (`… DATABASE name …`)?
    pub(super) fn is_on_database(&self, database: &str) -> bool {
        self.name_after("database") == Some(database)
    }

    /// The statement without the clause that names a tablespace that is missing: `TABLESPACE = name` of CREATE DATABASE, `TABLESPACE name` of others.
    pub(super) fn without_tablespace(&self, is_missing: impl Fn(&str) -> bool) -> String {
        let found = self.tokens.iter().position(|token| token.kind == Kind::Word("tablespace".into()));
        let Some(at) = found.filter(|at| *at > 0) else { return self.text.to_owned() };
        let is_equals = |token: &Token| &self.text[token.start - self.offset..token.end - self.offset] == "=";
        let equals = usize::from(self.tokens.get(at + 1).is_some_and(is_equals));
        let (Some(first), Some(last)) = (self.tokens.get(at), self.tokens.get(at + equals + 1)) else {
            return self.text.to_owned();
        };
        if !self.name(at + equals + 1).is_some_and(is_missing) {
            return self.text.to_owned();
        }
        let (before, after) = (&self.text[..first.start - self.offset], &self.text[last.end - self.offset..]);
        format!("{}{after}", before.trim_end())
    }

    /// The statement with another name behind its first `DATABASE`.
    pub(super) fn on_database(&self, name: &str) -> String {
        let found = self.tokens.iter().position(|token| token.kind == Kind::Word("database".into()));
        let Some(token) = found.and_then(|at| self.tokens.get(at + 1)) else { return self.text.to_owned() };
        let (start, end) = (token.start - self.offset, token.end - self.offset);
        format!("{}{}{}", &self.text[..start], ident(name), &self.text[end..])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_statement_is_shown_without_its_values() {
        for (sql, shown) in [
            (
                "SELECT a1, \"b 2\" FROM s.t WHERE x='it''s' AND y > 45",
                "SELECT a1, \"b 2\" FROM s.t WHERE x=… AND y > …",
            ),
            ("/* it's /* 'for' */ you */ SELECT $$a$$, $1, E'x' -- 'secret", "SELECT …, $…, …"),
            (r"SELECT x, 'O\'Brien secret', 'x'", "SELECT x …"),
            ("SELECT 'not ended", "SELECT …"),
        ] {
            assert_eq!(without_values(sql), shown);
        }
    }

    #[test]
    fn a_dump_is_taken_apart_into_its_statements() {
        let sql = "--\n-- x; y\n--\n\n\\restrict abc\nSET a = 'it''s; -- no';\n\\connect \"x;y\"\nCREATE ROLE \"We;\"\"ird\";\n\
                   COMMENT ON ROLE app IS E'a\\';b';\nDO $x$ begin; end $x$;\nlast";
        let texts: Vec<_> = statements(sql).iter().map(|s| s.text).collect();
        assert_eq!(
            texts,
            [
                "SET a = 'it''s; -- no'",
                "CREATE ROLE \"We;\"\"ird\"",
                "COMMENT ON ROLE app IS E'a\\';b'",
                "DO $x$ begin; end $x$",
                "last"
            ]
        );
        assert_eq!(statements(sql)[1].name_after("role"), Some("We;\"ird"));
    }

    #[test]
    fn a_database_gets_another_name_where_it_is_meant_and_nowhere_else() {
        for (sql, renamed) in [
            (
                "CREATE DATABASE altlas WITH TEMPLATE = template0",
                "CREATE DATABASE \"n\"\"ew\" WITH TEMPLATE = template0",
            ),
            (
                "ALTER ROLE altlas IN DATABASE altlas SET search_path TO 'altlas'",
                "ALTER ROLE altlas IN DATABASE \"n\"\"ew\" SET search_path TO 'altlas'",
            ),
            ("COMMENT ON DATABASE altlas IS 'DATABASE altlas'", "COMMENT ON DATABASE \"n\"\"ew\" IS 'DATABASE altlas'"),
            (
                "REVOKE CONNECT,TEMPORARY ON DATABASE altlas FROM PUBLIC",
                "REVOKE CONNECT,TEMPORARY ON DATABASE \"n\"\"ew\" FROM PUBLIC",
            ),
        ] {
            let statement = &statements(sql)[0];
            assert!(statement.is_on_database("altlas"));
            assert_eq!(statement.on_database("n\"ew"), renamed);
        }
        for (sql, without) in [
            ("CREATE DATABASE a WITH TABLESPACE = fast OWNER = b", "CREATE DATABASE a WITH OWNER = b"),
            ("CREATE DATABASE a WITH OWNER = b TABLESPACE = \"f t\"", "CREATE DATABASE a WITH OWNER = b"),
            ("CREATE TABLE tablespaces (a int)", "CREATE TABLE tablespaces (a int)"),
            ("CREATE DATABASE a WITH TABLESPACE = there", "CREATE DATABASE a WITH TABLESPACE = there"),
        ] {
            assert_eq!(statements(sql)[0].without_tablespace(|name| ["fast", "f t"].contains(&name)), without);
        }
        let script =
            "SET default_tablespace = fast;\nSET default_tablespace = \"f t\";\nSET default_tablespace = '';\n";
        let without = "SET default_tablespace = fast;\nSET default_tablespace = '';\nSET default_tablespace = '';\n";
        assert_eq!(without_tablespaces(script, &["f t".into()]), without);
        assert_eq!(statements("\"é")[0].name(0), Some("é"), "an open quote before a long character");
        let quoted = &statements("ALTER DATABASE \"al-t\"\"las\" OWNER TO app")[0];
        assert!(quoted.is_on_database("al-t\"las") && !quoted.is_on_database("al-t"));
    }

    #[test]
    fn keys_are_told_as_indexes_and_what_makes_constraints_of_them() {
        let key = |sql: &str| statements(sql)[0].key_constraint().map(|key| (key.create_index, key.attach));
        for (sql, create_index, attach) in [
            (
                "ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (a, \"B,\");",
                "CREATE UNIQUE INDEX \"t_pkey\" ON \"public\".\"t\" USING btree (a, \"B,\")",
                "ALTER TABLE ONLY \"public\".\"t\" ADD CONSTRAINT \"t_pkey\" PRIMARY KEY USING INDEX \"t_pkey\"",
            ),
            (
                "ALTER TABLE ONLY s.\"T\" ADD CONSTRAINT u UNIQUE NULLS NOT DISTINCT (a) INCLUDE (b, c) WITH (fillfactor='70') DEFERRABLE INITIALLY DEFERRED",
                "CREATE UNIQUE INDEX \"u\" ON \"s\".\"T\" USING btree (a) INCLUDE (b, c) NULLS NOT DISTINCT WITH (fillfactor='70')",
                "ALTER TABLE ONLY \"s\".\"T\" ADD CONSTRAINT \"u\" UNIQUE USING INDEX \"u\" DEFERRABLE INITIALLY DEFERRED",
            ),
        ] {
            assert_eq!(key(sql), Some((create_index.to_owned(), attach.to_owned())));
        }
        for sql in [
            "ALTER TABLE ONLY s.t ADD CONSTRAINT p PRIMARY KEY (id, valid WITHOUT OVERLAPS)",
            "ALTER TABLE ONLY s.t ADD CONSTRAINT e EXCLUDE USING gist (a WITH =)",
            "ALTER TABLE s.t ADD CONSTRAINT c CHECK ((a > 0)) NOT VALID",
            "ALTER TABLE ONLY s.t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES s.u(a)",
            "CREATE UNIQUE INDEX i ON s.t USING btree (a)",
            "ALTER TABLE ONLY s.t ADD CONSTRAINT p PRIMARY KEY",
        ] {
            assert_eq!(key(sql), None, "{sql}");
        }
        let on = |sql: &str| statements(sql)[0].index_on();
        let table = Some(("s".to_owned(), "t".to_owned()));
        assert_eq!(on("CREATE INDEX i ON s.t USING btree (a)"), table);
        assert_eq!(on("CREATE UNIQUE INDEX \"on\" ON \"s\".t USING btree (a) WHERE (b > 1)"), table);
        assert_eq!(on("CREATE INDEX i ON ONLY s.t USING btree (a)"), None);
        let foreign = "ALTER TABLE ONLY s.t\n    ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES s.u(a)";
        assert_eq!(statements(foreign)[0].constraint_on(&["foreign", "key"]), table);
    }

    #[test]
    fn some_semicolons_end_no_statement() {
        let sql = "CREATE RULE r AS ON INSERT TO v DO INSTEAD ( INSERT INTO a VALUES (1); INSERT INTO b VALUES (2); );\n\
             CREATE OR REPLACE FUNCTION s.begin(x int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN x > 0 THEN 1 ELSE 2 END; SELECT 3; END;\n\
             CREATE TABLE t (\"begin\" int);\nBEGIN;\nSELECT 1;\nCOMMIT";
        let texts: Vec<&str> = statements(sql).iter().map(|statement| statement.text).collect();
        assert_eq!(texts.len(), 6, "{texts:#?}");
        assert!(texts[0].ends_with("); )") && texts[1].ends_with("SELECT 3; END"), "{texts:#?}");
    }

    #[test]
    fn a_line_tells_its_statement() {
        let sql = "--\n\nSET a = 1;\nCREATE TABLE t (\n    a int\n);\n\nCREATE TABLE u ();\n";
        let at = |line| {
            statement_at(sql, line)
                .map(|statement| statement.text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(at(3).unwrap(), "SET a =");
        assert_eq!(at(6).unwrap(), "CREATE TABLE t");
        assert_eq!(at(8).unwrap(), "CREATE TABLE u");
        assert_eq!(at(9), None);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_without_loss_of_place(sql in "[a-z;'\"\\\\$\\-\nE é]{0,60}") {
            for statement in statements(&sql) {
                prop_assert!(sql.contains(statement.text));
                let _ = (statement.on_database("x"), statement.key_constraint(), statement.index_on());
            }
        }

        #[test]
        fn quoted_text_reads_back(name in "\\PC{1,40}") {
            let sql = format!("CREATE DATABASE {} WITH X = {}; SELECT 1", ident(&name), literal(&name));
            let found = statements(&sql);
            prop_assert_eq!(found.len(), 2);
            prop_assert_eq!(found[0].name(2), Some(name.as_str()));
        }
    }
}
