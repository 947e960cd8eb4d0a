//! Tenants, keys, migrations, the clock.

use super::{conformance, fixtures::new_key, harness::Database};
use crate::{
    domain::ids::{KeyId, RunId, WorkspaceId},
    store::{KeyRole, NewKey, RunScope, StoreError},
};

conformance! {
    a_workspace_is_made_once_by_its_name,
    racing_makers_of_a_workspace_get_the_same_one,
    keys_are_found_by_prefix,
    a_prefix_is_given_out_once,
    a_key_expires_by_the_databases_clock,
    a_revoked_key_stays_revoked_since_the_first_time,
    a_key_of_a_workspace_that_is_missing_is_refused,
    a_key_for_one_run_is_not_listed_and_dies_with_its_issuer,
    the_clock_is_the_databases_and_moves_on,
    a_closed_store_is_unavailable;
    sql:
    migrating_again_changes_nothing,
}

async fn a_workspace_is_made_once_by_its_name(db: Database) {
    assert_eq!(db.store.workspace("acme").await.unwrap(), None);
    let made = db.store.ensure_workspace("acme").await.unwrap();
    assert_eq!(db.store.ensure_workspace("acme").await.unwrap(), made);
    assert_eq!(db.store.workspace("acme").await.unwrap(), Some(made));
    assert_ne!(db.store.ensure_workspace("Acme").await.unwrap(), made);
}

async fn racing_makers_of_a_workspace_get_the_same_one(db: Database) {
    let makers = (0..8).map(|_| {
        let store = db.store.clone();
        tokio::spawn(async move { store.ensure_workspace("acme").await.unwrap() })
    });
    let made: Vec<_> = futures::future::join_all(makers).await.into_iter().map(Result::unwrap).collect();
    assert!(made.iter().all(|id| *id == made[0]), "{made:?}");
}

async fn keys_are_found_by_prefix(db: Database) {
    let acme = db.workspace("acme").await;
    let key = db.key(acme, "aaaa").await;
    db.key(acme, "bbbb").await;
    let found = db.store.find_key("aaaa").await.unwrap().unwrap();
    assert_eq!((found.id, found.workspace_id, found.role), (key.id, acme, KeyRole::Operator));
    assert_eq!((found.digest.as_slice(), found.last_four.as_str()), (&[7; 32][..], "abcd"));
    assert_eq!((found.expires_at, found.revoked_at, found.is_expired), (None, None, false));
    assert!(db.store.find_key("aaa").await.unwrap().is_none());
    let listed: Vec<_> = db.store.list_keys(acme).await.unwrap().into_iter().map(|key| key.prefix).collect();
    assert_eq!(listed, ["aaaa", "bbbb"]);
}

async fn a_prefix_is_given_out_once(db: Database) {
    let acme = db.workspace("acme").await;
    db.key(acme, "aaaa").await;
    let again = db.store.create_key(new_key(acme, "aaaa", None)).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
}

async fn a_key_expires_by_the_databases_clock(db: Database) {
    let acme = db.workspace("acme").await;
    let now = db.store.now().await.unwrap();
    for (prefix, expires_at, is_expired) in
        [("past", now, true), ("future", now + 60_000, false), ("ancient", 0, true)]
    {
        let made = db.store.create_key(new_key(acme, prefix, Some(expires_at))).await.unwrap();
        assert_eq!(made.is_expired, is_expired, "{prefix}");
        let found = db.store.find_key(prefix).await.unwrap().unwrap();
        assert_eq!((found.is_expired, found.expires_at), (is_expired, Some(expires_at)), "{prefix}");
    }
}

async fn a_revoked_key_stays_revoked_since_the_first_time(db: Database) {
    let acme = db.workspace("acme").await;
    let key = db.key(acme, "aaaa").await;
    db.store.revoke_key(acme, key.id).await.unwrap();
    let first = db.store.find_key("aaaa").await.unwrap().unwrap().revoked_at.unwrap();
    assert!(first >= key.created_at);
    db.edit("update api_keys set revoked_at = 5", |rows| {
        rows.keys.values_mut().for_each(|key| key.revoked_at = Some(5));
    })
    .await;
    db.store.revoke_key(acme, key.id).await.unwrap();
    assert_eq!(db.store.find_key("aaaa").await.unwrap().unwrap().revoked_at, Some(5));
    let unknown = db.store.revoke_key(acme, KeyId::generate()).await;
    assert!(matches!(unknown, Err(StoreError::NotFound)), "{unknown:?}");
}

async fn a_key_of_a_workspace_that_is_missing_is_refused(db: Database) {
    let refused = db.store.create_key(new_key(WorkspaceId::generate(), "aaaa", None)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
}

async fn a_key_for_one_run_is_not_listed_and_dies_with_its_issuer(db: Database) {
    let acme = db.workspace("acme").await;
    let issuer = db.key(acme, "issuer").await;
    let (run_id, expires_at) = (RunId::generate(), db.store.now().await.unwrap() + 60_000);
    for (prefix, issued_by) in [("of_a_key", Some(issuer.id)), ("of_nobody", None)] {
        let scope = Some(RunScope { run_id, issued_by });
        let made = db.store.create_key(NewKey { scope, ..new_key(acme, prefix, Some(expires_at)) }).await;
        assert_eq!(made.unwrap().scope, scope);
        assert_eq!(db.store.find_key(prefix).await.unwrap().unwrap().scope, scope);
    }
    let listed: Vec<_> = db.store.list_keys(acme).await.unwrap().into_iter().map(|key| key.id).collect();
    assert_eq!(listed, [issuer.id]);

    db.store.revoke_key(acme, issuer.id).await.unwrap();
    assert!(db.store.find_key("of_a_key").await.unwrap().is_none());
    assert!(db.store.find_key("of_nobody").await.unwrap().is_some());
    db.edit("update api_keys set revoked_at = null, expires_at = 1 where prefix = 'issuer'", |rows| {
        let issuer = rows.keys.values_mut().find(|key| key.prefix == "issuer").unwrap();
        (issuer.revoked_at, issuer.expires_at) = (None, Some(1));
    })
    .await;
    assert!(db.store.find_key("of_a_key").await.unwrap().is_none());
}

async fn migrating_again_changes_nothing(db: Database) {
    let acme = db.workspace("acme").await;
    let again = (0..4).map(|_| {
        let store = db.store.clone();
        tokio::spawn(async move { store.migrate().await })
    });
    for done in futures::future::join_all(again).await {
        done.unwrap().unwrap();
    }
    assert_eq!(db.store.workspace("acme").await.unwrap(), Some(acme));
    let migrations = db.store.migrations().await.unwrap();
    assert!(migrations.iter().all(|(_, name, applied)| *applied && !name.is_empty()), "{migrations:?}");
    assert!(migrations.iter().map(|m| m.0).eq(1..=migrations.len() as i64), "{migrations:?}");
}

async fn the_clock_is_the_databases_and_moves_on(db: Database) {
    let first = db.store.now().await.unwrap();
    assert!(first > 1_700_000_000_000, "{first}");
    while db.store.now().await.unwrap() == first {}
    assert!(db.store.now().await.unwrap() > first);
}

async fn a_closed_store_is_unavailable(db: Database) {
    db.store.close().await;
    let error = db.store.now().await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}
