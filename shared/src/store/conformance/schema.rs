//! Both migration folders end in the same tables, columns and gates.

use std::collections::BTreeSet;

use super::{
    conformance,
    harness::{Database, on_postgres, on_sqlite},
};
use crate::{domain::transition::RunStatus, store};

conformance! {
; sql:
    every_table_but_workers_names_its_workspace,
    a_chats_slot_is_a_unique_index_on_the_slot_holding_statuses,
}

/// `table.column type null?` of every table, in words that both databases share. What is a boolean, an id or JSON on
/// Postgres is a number, bytes or text on SQLite.
async fn columns(db: &Database) -> BTreeSet<String> {
    let rows = if db.is_postgres() {
        "select table_name || '.' || column_name || ' ' || case data_type when 'uuid' then 'bytes' \
         when 'bytea' then 'bytes' when 'jsonb' then 'text' when 'bigint' then 'number' when 'integer' then 'number' \
         when 'boolean' then 'number' else data_type end || case is_nullable when 'YES' then ' or null' else '' end \
         from information_schema.columns where table_schema = 'public' and table_name <> '_sqlx_migrations'"
    } else {
        "select t.name || '.' || c.name || ' ' || case lower(c.type) when 'blob' then 'bytes' when 'integer' then \
         'number' else lower(c.type) end || case when c.\"notnull\" then '' else ' or null' end \
         from sqlite_schema t join pragma_table_info(t.name) c \
         where t.type = 'table' and t.name not like 'sqlite_%' and t.name <> '_sqlx_migrations'"
    };
    db.texts(rows).await.into_iter().collect()
}

#[tokio::test]
async fn both_migration_folders_end_in_the_same_tables_and_columns() {
    on_postgres(|postgres| {
        on_sqlite(async move |sqlite| {
            let (postgres, sqlite) = (columns(&postgres).await, columns(&sqlite).await);
            assert!(postgres.len() > 50, "{postgres:?}");
            let only_postgres: Vec<_> = postgres.difference(&sqlite).collect();
            let only_sqlite: Vec<_> = sqlite.difference(&postgres).collect();
            assert!(
                only_postgres.is_empty() && only_sqlite.is_empty(),
                "only in Postgres: {only_postgres:#?}\nonly in SQLite: {only_sqlite:#?}"
            );
        })
    })
    .await;
}

#[tokio::test]
async fn both_migration_folders_have_the_same_numbers_and_names() {
    let names = |migrations: &sqlx::migrate::Migrator| -> Vec<_> {
        migrations.iter().map(|m| (m.version, m.description.to_string())).collect()
    };
    assert_eq!(names(&store::postgres::MIGRATIONS), names(&store::sqlite::MIGRATIONS));
}

async fn a_chats_slot_is_a_unique_index_on_the_slot_holding_statuses(db: Database) {
    let sql = if db.is_postgres() {
        "select indexdef from pg_indexes where indexname = 'runs_one_active_per_chat'"
    } else {
        "select sql from sqlite_schema where name = 'runs_one_active_per_chat'"
    };
    let definition = db.texts(sql).await.concat().to_lowercase();
    assert!(definition.starts_with("create unique index"), "{definition}");
    for status in RunStatus::ALL {
        let quoted = format!("'{status}'");
        assert_eq!(definition.contains(&quoted), status.holds_slot(), "{status} in {definition}");
    }
}

async fn every_table_but_workers_names_its_workspace(db: Database) {
    let columns = columns(&db).await;
    let tables: BTreeSet<_> =
        columns.iter().filter_map(|column| column.split_once('.')).map(|(table, _)| table).collect();
    for table in tables.into_iter().filter(|table| !["workspaces", "workers"].contains(table)) {
        assert!(columns.contains(&format!("{table}.workspace_id bytes")), "{table}");
    }
}
