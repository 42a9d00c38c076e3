BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE events (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at DOUBLE NOT NULL, 
	session TEXT NOT NULL, 
	turn INTEGER, 
	body TEXT NOT NULL, 
	raw BLOB
);
INSERT INTO "events" VALUES(1,1764000001.0,'s1',NULL,'{"type":"task.created","slug":"fix-it","request":{"repo":"/r","prompt":"fix\nit","budget":0.5}}',NULL);
INSERT INTO "events" VALUES(2,1764000001.0,'s1',NULL,'{"type":"session.created","slug":"fix-it","repo":"/r","agent":"claude"}',NULL);
INSERT INTO "events" VALUES(3,1764000001.0,'s1',NULL,'{"type":"task.assigned","provider":"qemu","tier":"vm","machine":"hv-1","why":"strongest here"}',NULL);
INSERT INTO "events" VALUES(4,1764000001.0,'s1',NULL,'{"type":"session.preparing"}',NULL);
INSERT INTO "events" VALUES(5,1764000001.0,'s1',NULL,'{"type":"session.prepared","base":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","branch":"hv/fix-it"}',NULL);
INSERT INTO "events" VALUES(6,1764000001.0,'s1',NULL,'{"type":"machine.booting","machine":"hv-1","provider":"qemu"}',NULL);
INSERT INTO "events" VALUES(7,1764000001.0,'s1',NULL,'{"type":"machine.ready","machine":"hv-1","seconds":0.4}',NULL);
INSERT INTO "events" VALUES(8,1764000001.0,'s1',NULL,'{"type":"session.running"}',NULL);
INSERT INTO "events" VALUES(9,1764000001.0,'s1',NULL,'{"type":"task.started"}',NULL);
INSERT INTO "events" VALUES(10,1764000002.0,'s1',1,'{"type":"turn.started","agent":"claude","program":"2.1.0","model":"sonnet","pid":42}',NULL);
INSERT INTO "events" VALUES(11,1764000002.0,'s1',1,'{"type":"agent.started","conversation":"c-1","model":"claude-sonnet","version":"2.1.0"}',NULL);
INSERT INTO "events" VALUES(12,1764000002.0,'s1',1,'{"type":"agent.text","text":"I look"}',NULL);
INSERT INTO "events" VALUES(13,1764000002.0,'s1',1,'{"type":"agent.tool_called","call":"t1","tool":"Bash","summary":"Bash: pytest -q"}',NULL);
INSERT INTO "events" VALUES(14,1764000002.0,'s1',1,'{"type":"model.called","protocol":"anthropic","model":"m","status":200,"seconds":1.5,"usage":{"input_tokens":10,"output_tokens":20,"cache_read_tokens":0,"cache_write_tokens":0,"cost_usd":0.25,"requests":1}}',NULL);
INSERT INTO "events" VALUES(15,1764000002.0,'s1',1,'{"type":"agent.tool_returned","call":"t1","output":"1 failed","is_error":true}',NULL);
INSERT INTO "events" VALUES(16,1764000002.0,'s1',1,'{"type":"agent.ended","is_error":false,"text":"done"}',NULL);
INSERT INTO "events" VALUES(17,1764000002.0,'s1',1,'{"type":"turn.ended","outcome":"succeeded","exit_code":0,"conversation":"c-1"}',NULL);
INSERT INTO "events" VALUES(18,1764000003.0,'s1',NULL,'{"type":"result.collected","branch":"hv/fix-it","base":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","head":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","commits":2,"files":1,"insertions":3}',NULL);
INSERT INTO "events" VALUES(19,1764000003.0,'s1',NULL,'{"type":"machine.stopping","machine":"hv-1"}',NULL);
INSERT INTO "events" VALUES(20,1764000003.0,'s1',NULL,'{"type":"machine.stopped","machine":"hv-1"}',NULL);
INSERT INTO "events" VALUES(21,1764000003.0,'s1',NULL,'{"type":"session.finished"}',NULL);
INSERT INTO "events" VALUES(22,1764000003.0,'s1',NULL,'{"type":"task.completed"}',NULL);
INSERT INTO "events" VALUES(23,1764000004.0,'s1',1,'{"type":"agent.output","text":"tail"}',X'7B2274797065223A2278227D0A');
INSERT INTO "events" VALUES(24,1764000005.0,'s2',NULL,'{"type":"session.created","slug":"stays","repo":"/r","agent":"codex","request":{"repo":"/r"}}',NULL);
INSERT INTO "events" VALUES(25,1764000005.0,'s2',NULL,'{"type":"session.preparing"}',NULL);
INSERT INTO "events" VALUES(26,1764000005.0,'s2',NULL,'{"type":"session.prepared","base":"cccccccccccccccccccccccccccccccccccccccc","branch":"hv/stays"}',NULL);
INSERT INTO "events" VALUES(27,1764000006.0,'s2',NULL,'{"type":"machine.booting","machine":"hv-2","provider":"docker"}',NULL);
INSERT INTO "events" VALUES(28,1764000006.0,'s2',NULL,'{"type":"machine.ready","machine":"hv-2"}',NULL);
INSERT INTO "events" VALUES(29,1764000006.0,'s2',NULL,'{"type":"session.running"}',NULL);
INSERT INTO "events" VALUES(30,1764000007.0,'s2',NULL,'{"type":"snapshot.taken","snapshot":"p1","name":"kept","live":false,"image":"debian"}',NULL);
INSERT INTO "events" VALUES(31,1764000008.0,'s2',NULL,'{"type":"machine.stopping","machine":"hv-2"}',NULL);
INSERT INTO "events" VALUES(32,1764000008.0,'s2',NULL,'{"type":"machine.stopped","machine":"hv-2"}',NULL);
INSERT INTO "events" VALUES(33,1764000008.0,'s2',NULL,'{"type":"session.stopped"}',NULL);
INSERT INTO "events" VALUES(34,1764000009.0,'',NULL,'{"type":"task.failed","failure":{"code":"x","message":"x","hint":""}}',NULL);
INSERT INTO "events" VALUES(35,1764000010.0,'',NULL,'{"type":"task.cancel_asked"}',NULL);
INSERT INTO "events" VALUES(36,1764000011.0,'',NULL,'{"type":"task.cancelled"}',NULL);
INSERT INTO "events" VALUES(37,1764000012.0,'',NULL,'{"type":"session.placed","provider":"x","tier":"x"}',NULL);
INSERT INTO "events" VALUES(38,1764000013.0,'',NULL,'{"type":"session.paused"}',NULL);
INSERT INTO "events" VALUES(39,1764000014.0,'',NULL,'{"type":"session.unpaused"}',NULL);
INSERT INTO "events" VALUES(40,1764000015.0,'',NULL,'{"type":"session.rewound","snapshot":"x"}',NULL);
INSERT INTO "events" VALUES(41,1764000016.0,'',NULL,'{"type":"session.forked","parent":"x","snapshot":"x","live":true}',NULL);
INSERT INTO "events" VALUES(42,1764000017.0,'',NULL,'{"type":"session.imported","exported_at":0.5}',NULL);
INSERT INTO "events" VALUES(43,1764000018.0,'',NULL,'{"type":"session.budget_shared","children":[],"dollars":0.5}',NULL);
INSERT INTO "events" VALUES(44,1764000019.0,'',NULL,'{"type":"session.budget_set","dollars":0.5}',NULL);
INSERT INTO "events" VALUES(45,1764000020.0,'',NULL,'{"type":"session.failed","failure":{"code":"x","message":"x","hint":""}}',NULL);
INSERT INTO "events" VALUES(46,1764000021.0,'',NULL,'{"type":"snapshot.removed","snapshot":"x"}',NULL);
INSERT INTO "events" VALUES(47,1764000022.0,'',NULL,'{"type":"port.opened","host_port":1,"guest_port":1}',NULL);
INSERT INTO "events" VALUES(48,1764000023.0,'',NULL,'{"type":"port.closed","host_port":1}',NULL);
INSERT INTO "events" VALUES(49,1764000024.0,'',NULL,'{"type":"machine.failed","machine":"x","failure":{"code":"x","message":"x","hint":""}}',NULL);
INSERT INTO "events" VALUES(50,1764000025.0,'',NULL,'{"type":"turn.created","agent":"x"}',NULL);
INSERT INTO "events" VALUES(51,1764000026.0,'',NULL,'{"type":"phase.ended","phase":"x","seconds":0.5}',NULL);
INSERT INTO "events" VALUES(52,1764000027.0,'',NULL,'{"type":"progress","message":"x"}',NULL);
INSERT INTO "events" VALUES(53,1764000028.0,'',NULL,'{"type":"notice","message":"x"}',NULL);
INSERT INTO "events" VALUES(54,1764000029.0,'',NULL,'{"type":"agent.prompted","text":"x"}',NULL);
INSERT INTO "events" VALUES(55,1764000030.0,'',NULL,'{"type":"agent.asked","message":"x"}',NULL);
INSERT INTO "events" VALUES(56,1764000031.0,'',NULL,'{"type":"agent.thinking","text":"x"}',NULL);
INSERT INTO "events" VALUES(57,1764000032.0,'',NULL,'{"type":"agent.edited","path":"x"}',NULL);
INSERT INTO "events" VALUES(58,1764000033.0,'',NULL,'{"type":"agent.usage","usage":{"input_tokens":0,"output_tokens":0,"cache_read_tokens":0,"cache_write_tokens":0,"cost_usd":0.0,"requests":0}}',NULL);
INSERT INTO "events" VALUES(59,1764000034.0,'',NULL,'{"type":"agent.error","message":"x"}',NULL);
INSERT INTO "events" VALUES(60,1764000035.0,'',NULL,'{"type":"agent.retrying","attempt":1}',NULL);
INSERT INTO "events" VALUES(61,1764000036.0,'',NULL,'{"type":"agent.rate_limited","message":"x"}',NULL);
INSERT INTO "events" VALUES(62,1764000037.0,'',NULL,'{"type":"agent.permission_denied","tool":"x"}',NULL);
INSERT INTO "events" VALUES(63,1764000038.0,'',NULL,'{"type":"model.failed","protocol":"x","failure":{"code":"x","message":"x","hint":""}}',NULL);
INSERT INTO "events" VALUES(64,1764000039.0,'',NULL,'{"type":"door.refused","what":"x","reason":"x"}',NULL);
INSERT INTO "events" VALUES(65,1764000040.0,'',NULL,'{"type":"budget.exhausted","budget_usd":0.5,"spent_usd":0.5}',NULL);
CREATE TABLE machines (
	name TEXT NOT NULL, 
	session TEXT NOT NULL, 
	provider TEXT NOT NULL, 
	status TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	created_at DOUBLE NOT NULL, 
	updated_at DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "machines" VALUES('hv-1','s1','qemu','stopped','',1764000001.0,1764000003.0);
INSERT INTO "machines" VALUES('hv-2','s2','docker','stopped','',1764000006.0,1764000008.0);
CREATE TABLE ports (
	host_port INTEGER NOT NULL, 
	session TEXT NOT NULL, 
	guest_port INTEGER NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (host_port)
);
CREATE TABLE results (
	session TEXT NOT NULL, 
	branch TEXT NOT NULL, 
	base TEXT NOT NULL, 
	head TEXT NOT NULL, 
	commits INTEGER NOT NULL, 
	files INTEGER NOT NULL, 
	insertions BIGINT NOT NULL, 
	deletions BIGINT NOT NULL, 
	leftover BOOLEAN NOT NULL, 
	collected_at DOUBLE NOT NULL, 
	PRIMARY KEY (session)
);
INSERT INTO "results" VALUES('s1','hv/fix-it','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',2,1,3,0,0,1764000003.0);
CREATE TABLE sessions (
	id TEXT NOT NULL, 
	slug TEXT NOT NULL, 
	repo TEXT NOT NULL, 
	agent TEXT NOT NULL, 
	phase TEXT NOT NULL, 
	activity TEXT NOT NULL, 
	branch TEXT, 
	base TEXT, 
	machine TEXT, 
	provider TEXT, 
	tier TEXT, 
	failure TEXT, 
	created_at DOUBLE NOT NULL, 
	updated_at DOUBLE NOT NULL, 
	input_tokens BIGINT NOT NULL, 
	output_tokens BIGINT NOT NULL, 
	cache_read_tokens BIGINT NOT NULL, 
	cache_write_tokens BIGINT NOT NULL, 
	cost_usd DOUBLE NOT NULL, 
	requests BIGINT NOT NULL, request TEXT, parent TEXT, reason TEXT DEFAULT '' NOT NULL, feed_offset BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "sessions" VALUES('s1','fix-it','/r','claude','finished','idle','hv/fix-it','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','hv-1','qemu','vm',NULL,1764000001.0,1764000003.0,10,20,0,0,0.25,1,NULL,NULL,'',0);
INSERT INTO "sessions" VALUES('s2','stays','/r','codex','stopped','idle','hv/stays','cccccccccccccccccccccccccccccccccccccccc','hv-2','docker',NULL,NULL,1764000005.0,1764000008.0,0,0,0,0,0.0,0,'{"repo":"/r"}',NULL,'',0);
CREATE TABLE snapshots (
	id TEXT NOT NULL, 
	session TEXT NOT NULL, 
	name TEXT NOT NULL, 
	live BOOLEAN NOT NULL, 
	seconds DOUBLE NOT NULL, 
	size BIGINT NOT NULL, 
	after_turn INTEGER NOT NULL, 
	feed_offset BIGINT NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "snapshots" VALUES('p1','s2','kept',0,0.0,0,0,0,1764000007.0);
CREATE TABLE tasks (
	id TEXT NOT NULL, 
	slug TEXT NOT NULL, 
	state TEXT NOT NULL, 
	request TEXT NOT NULL, 
	provider TEXT, 
	tier TEXT, 
	machine TEXT, 
	failure TEXT, 
	created_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	cancel_asked_at DOUBLE, 
	ended_at DOUBLE, 
	PRIMARY KEY (id)
);
INSERT INTO "tasks" VALUES('s1','fix-it','completed','{"repo":"/r","prompt":"fix\nit","budget":0.5}','qemu','vm','hv-1',NULL,1764000001.0,1764000001.0,NULL,1764000003.0);
CREATE TABLE turns (
	session TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	agent TEXT NOT NULL, 
	program TEXT NOT NULL, 
	model TEXT NOT NULL, 
	pid BIGINT, 
	output_offset BIGINT NOT NULL, 
	stderr_offset BIGINT NOT NULL, 
	outcome TEXT, 
	exit_code INTEGER, 
	failure TEXT, 
	conversation TEXT, 
	created_at DOUBLE NOT NULL, 
	started_at DOUBLE, 
	ended_at DOUBLE, 
	PRIMARY KEY (session, number)
);
INSERT INTO "turns" VALUES('s1',1,'ended','claude','2.1.0','claude-sonnet',42,13,0,'succeeded',0,NULL,'c-1',1764000002.0,1764000002.0,1764000002.0);
CREATE INDEX events_by_session ON events (session, seq);
CREATE INDEX tasks_by_slug ON tasks (slug);
CREATE INDEX tasks_by_state ON tasks (state);
CREATE INDEX sessions_by_slug ON sessions (slug);
CREATE INDEX machines_by_session ON machines (session);
CREATE INDEX ports_by_session ON ports (session);
CREATE INDEX snapshots_by_session ON snapshots (session);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',65);
COMMIT;
