-- What the statements of reads.txt refer to.
CREATE TABLE t (id int PRIMARY KEY, v text, share int DEFAULT 1, at timestamptz DEFAULT now(), j jsonb, a int[]);
INSERT INTO t SELECT i, 'v' || i, i, now(), jsonb_build_object('k', i), ARRAY[i, i + 1] FROM generate_series(1, 20) i;
CREATE TABLE "Weird Table" ("select" int, "a""b" int);
CREATE VIEW plain_view AS SELECT id, lower(v) AS v FROM t;
CREATE SEQUENCE s;
CREATE VIEW volatile_view AS SELECT nextval('s') AS n;
CREATE UNLOGGED TABLE scratch (id int);
CREATE FUNCTION stable_fn(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1 + 1';
CREATE FUNCTION "Odd Name"(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION writing_fn(int) RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO t (id) VALUES ($1) RETURNING id';
CREATE FUNCTION overloaded(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION overloaded(text) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
CREATE FUNCTION writing_step(int, int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT $1 + $2';
CREATE AGGREGATE writing_agg(int) (SFUNC = writing_step, STYPE = int, INITCOND = 0);
CREATE FUNCTION writing_attr(t) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
