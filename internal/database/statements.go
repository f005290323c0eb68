// Prepared statements for SQLite, where preparing costs more than running. (pgx keeps its own.)

package database

import (
	"context"
	"database/sql"
	"sync"

	"github.com/jmoiron/sqlx"
)

// maxStatements bounds the cache; queries with lists of conditions come in a few dozen forms.
const maxStatements = 512

// statements prepares each query once on what prepare belongs to: the writing connection, or the pool of readers.
type statements struct {
	prepare func(ctx context.Context, query string) (*sqlx.Stmt, error)

	mu    sync.RWMutex
	known map[string]*sqlx.Stmt
}

func newStatements(prepare func(ctx context.Context, query string) (*sqlx.Stmt, error)) *statements {
	return &statements{prepare: prepare, known: map[string]*sqlx.Stmt{}}
}

// get returns the statement; temporary ones are the caller's to close.
func (s *statements) get(query string) (statement *sqlx.Stmt, temporary bool, err error) {
	s.mu.RLock()
	statement = s.known[query]
	s.mu.RUnlock()
	if statement != nil {
		return statement, false, nil
	}
	if statement, err = s.prepare(unbounded, query); err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.known[query]; other != nil || len(s.known) >= maxStatements {
		return statement, true, nil
	}
	s.known[query] = statement
	return statement, false, nil
}

func (s *statements) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, statement := range s.known {
		statement.Close()
	}
	clear(s.known)
}

// GetContext, SelectContext and ExecContext make statements a conn.

func (s *statements) GetContext(ctx context.Context, dest any, query string, args ...any) error {
	statement, temporary, err := s.get(query)
	if err != nil {
		return err
	}
	if temporary {
		defer statement.Close()
	}
	return statement.GetContext(ctx, dest, args...)
}

func (s *statements) SelectContext(ctx context.Context, dest any, query string, args ...any) error {
	statement, temporary, err := s.get(query)
	if err != nil {
		return err
	}
	if temporary {
		defer statement.Close()
	}
	return statement.SelectContext(ctx, dest, args...)
}

func (s *statements) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	statement, temporary, err := s.get(query)
	if err != nil {
		return nil, err
	}
	if temporary {
		defer statement.Close()
	}
	return statement.ExecContext(ctx, args...)
}
