//go:build !unix

// Without flock there is no lock: let one process only renew in a directory.

package client

func (s *Store) acquire() error { return nil }

func (s *Store) release() {}
