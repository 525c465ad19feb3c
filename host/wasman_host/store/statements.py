"""Every statement of the SQLite store, in the order of the protocol.

Each text is constant, so sqlite3's cache keeps it prepared.
"""

from __future__ import annotations

COLUMNS = """tenant, id, run, version, nonce, mail, status, workflow, module, queue, owner, wake, expires, takeovers,
    size, parent, created, closed, attributes, tail, coalesce(record.data, x'')"""
INSTANCE = "instance left join record on record.instance = instance.number"

FENCE = """select number, run_number, run, version, nonce, mail, status, workflow, module, queue, owner, wake, expires,
    parent, created, closed, attributes, fresh from instance where tenant = ? and id = ?"""

REMAINS = """select exists (select 1 from run where tenant = ? and id = ?)
    or exists (select 1 from mail where tenant = ? and id = ?)"""

# In the place of the two above, for what is to be created: a row where there is nothing of it.
IS_NEW = """select 1 where not exists (select 1 from instance where tenant = ? and id = ?)
    and not exists (select 1 from run where tenant = ? and id = ?)
    and not exists (select 1 from mail where tenant = ? and id = ?)"""

CREATE = """insert into instance (tenant, id, run, run_number, version, nonce, tail, takeovers, size, status,
    workflow, module, queue, owner, wake, expires, parent, created, closed, attributes)
    values (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""

ADD_RECORD = "insert into record (instance, data) values (?, ?)"
REWRITE_RECORD = "update record set data = ? where instance = ?"

# The step of a running instance touches no index and no page but the row's own, and the row is short.
STEP = """update instance set version = version + 1, nonce = ?, tail = ?, takeovers = 0
    where number = ? and run_number = ? and version = ?"""
# The same of one that is alone, with its log entries in the row; and what they have to follow.
LONE_STEP = """update instance set version = version + 1, nonce = ?, tail = ?, takeovers = 0, fresh = ?
    where number = ? and run_number = ? and version = ?"""
IN_ROW = """select fresh, coalesce((select max(last) from log where run = run_number), -1)
    from instance where number = ? and run_number = ? and version = ?"""
REWRITE = """update instance set version = version + 1, nonce = ?, tail = ?, takeovers = ?, size = ?, fresh = x''
    where number = ? and run = ? and version = ?"""

MOVE = """update instance set version = version + 1, nonce = ?, tail = ?, takeovers = ?, size = ?, run = ?,
    run_number = ?, mail = mail - ?, status = ?, workflow = ?, module = ?, queue = ?, owner = ?, wake = ?,
    expires = ?, parent = ?, created = ?, closed = ?, attributes = ?, fresh = x''
    where number = ? and run = ? and version = ?"""

# The end of a run, where nothing need be looked up: it is not written if there is mail, another attribute, or anything
# else in its row than is known.
END = """update instance set version = version + 1, nonce = ?, tail = ?, takeovers = ?, size = ?, status = ?,
    workflow = ?, module = ?, queue = ?, owner = ?, wake = ?, expires = ?, parent = ?, created = ?, closed = ?,
    fresh = x'' where number = ? and run = ? and version = ? and mail = 0 and attributes = ? and fresh = ?"""

ADD_RUN = "insert into run (run, tenant, id) values (?, ?, ?)"
ADD_ENTRIES = "insert into log (run, n, last, entries) values (?, ?, ?, ?)"
CUT_ENTRIES = "delete from log where run = ? and last >= ? and last < ?"
# The row that holds entries on both sides of a number, if one does.
ACROSS = """select number, entries from log where number = (
    select number from log where run = ? and last >= ? order by last limit 1) and n < ?"""
DROP_ENTRIES = "delete from log where number = ?"
DROP_BLOB = "delete from blob where run = ? and name = ?"
ADD_BLOB = "insert into blob (run, name, data) values (?, ?, ?)"
ADD_ATTRIBUTE = "insert into attribute (tenant, name, value, id) values (?, ?, ?, ?)"
DROP_ATTRIBUTE = "delete from attribute where tenant = ? and name = ? and value = ? and id = ?"

DELETE = (
    "delete from log where run in (select number from run where tenant = ? and id = ?)",
    "delete from blob where run in (select number from run where tenant = ? and id = ?)",
    "delete from mail where tenant = ? and id = ?",
    "delete from run where tenant = ? and id = ?",
    "delete from record where instance = (select number from instance where tenant = ? and id = ?)",
    "delete from instance where tenant = ? and id = ?",
)

LOAD = f"select {COLUMNS} from {INSTANCE} where tenant = ? and id = ?"  # noqa: S608  constants
# What the log holds, and what the instance's own row does. One statement: between two, entries could go from there to
# the log.
READ = """select entries from log where run = (select number from run where run = ?) and last >= ? and n < ?
    union all
    select fresh from run join instance using (tenant, id) where run.run = ? and run_number = run.number
        and fresh <> x''"""
FORMER = """select data from blob where name = ? and run = (
    select number from run where run = ? and tenant = ? and id = ?)"""
BLOB = "select data from blob where run = (select number from run where run = ?) and name = ?"
PUT_MODULE = "insert into module (sha256, data) values (?, ?) on conflict do nothing"
MODULE = "select data from module where sha256 = ?"
PUT_IMAGE = "insert into image (name, data) values (?, ?) on conflict do nothing"
IMAGE = "select data from image where name = ?"

RECEIVER = "select number, status, workflow, run, version, mail from instance where tenant = ? and id = ?"
SEND = """insert into mail (tenant, id, message, kind, body, sent) values (?, ?, ?, ?, ?, ?)
    on conflict do nothing"""
IS_SENT = "select 1 from mail where tenant = ? and id = ? and message = ?"
MAILED_ONE = "update instance set mail = mail + 1 where number = ?"
UNCONSUMED = "select 1 from mail where tenant = ? and id = ? and message = ? and consumed_at is null"
CONSUME = "update mail set consumed_at = ? where tenant = ? and id = ? and message = ? and consumed_at is null"
FORGET = """delete from mail where number in
    (select number from mail where consumed_at is not null and consumed_at < ? order by consumed_at limit 1000)"""
UNREAD = "select count(*) from mail where tenant = ? and id = ? and consumed_at is null"
MAIL = """select message, kind, body, sent from mail where tenant = ? and id = ? and consumed_at is null
    order by number"""
MAILED = "select tenant, id from instance where owner = ? and mail > 0"

# A row that is damaged must not take the place of one that can be claimed, hence json_valid.
DUE = f"""select number, {COLUMNS} from {INSTANCE} where owner is null and wake is not null and workflow <> ''
    and status in ('running', 'waiting', 'publishing') and queue = ? and wake <= ? and json_valid(attributes)
    order by wake limit ?"""  # noqa: S608
DUE_BY_MAIL = f"""select number, {COLUMNS} from {INSTANCE} where owner is null and mail > 0 and workflow <> ''
    and status in ('running', 'waiting', 'publishing', 'blocked') and queue = ? and json_valid(attributes)
    order by created limit ?"""  # noqa: S608
EXPIRED = f"""select number, {COLUMNS} from {INSTANCE} where owner is null and expires is not null and workflow <> ''
    and status in ('running', 'waiting', 'publishing', 'blocked') and queue = ? and expires <= ?
    and json_valid(attributes) order by expires limit ?"""  # noqa: S608
OWNED = f"select number, {COLUMNS} from {INSTANCE} where owner = ?"  # noqa: S608
CLAIM = """update instance set version = version + 1, nonce = ?, owner = ?, takeovers = takeovers + ?
    where number = ? and version = ?"""
CLAIMED = f"select {COLUMNS} from {INSTANCE} where owner = ? and nonce in (?, ?)"  # noqa: S608

# Every owner there is, by one step through the index for each: select distinct would read an entry an instance.
OWNERS = """with recursive owner (name) as (
        select min(owner) from instance where owner is not null
        union all
        select (select min(owner) from instance where owner is not null and owner > name) from owner
        where name is not null
    ) select owner.name, worker.lease from owner left join worker on worker.id = owner.name
    where owner.name is not null"""

LEASE = "select lease from worker where id = ?"
WORKERS = "select id, lease from worker"
REGISTER = "insert into worker (id, lease, info) values (?, ?, ?) on conflict do nothing"
BEAT = "update worker set lease = ?, info = ? where id = ?"
REMOVE = "delete from worker where id = ?"
RELEASE = """update instance set owner = null, version = version + 1, nonce = ?,
    wake = case when status in ('running', 'waiting', 'publishing') then min(coalesce(wake, ?), ?) else wake end
    where owner = ?"""

STATES = """select i.tenant, i.id, i.run, i.status, i.mail from json_each(?) as k
    join instance as i on i.tenant = json_extract(k.value, '$[0]') and i.id = json_extract(k.value, '$[1]')"""
