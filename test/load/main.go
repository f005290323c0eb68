// Command load measures what a durable, linted, audited certificate costs beside the least that a Go program could do: it drives the real server
// and a bare TLS handler (bare.go) on the same machine, in turns, with the same enrollments on fresh connections, and prints both and
// their ratio. "make bench" runs it.
//
// It reads the servers' CPU time and memory from /proc, so it needs Linux.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

type options struct {
	certificates int
	parallel     int
	blocks       int
	rsa          int
	stored       int
	check        bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "bare" {
		if err := serveBare(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.IntVar(&o.certificates, "certificates", 3000, "certificates from each server")
	flag.IntVar(&o.parallel, "parallel", 16, "enrollments at a time")
	flag.IntVar(&o.blocks, "blocks", 6, "turns of each server")
	flag.IntVar(&o.rsa, "rsa", 300, "certificates from an RSA-4096 CA, to show what that costs (0: none)")
	flag.IntVar(&o.stored, "stored", 1_000_000, "certificates that are there already, of a fifth as many devices, for the section on scale (0: leave it out)")
	flag.BoolVar(&o.check, "check", false, "exit 1 if a bound is missed: CPU ratio 2.0, 400 certificates a second, 150 MB; 5000 kept and 1500 signed OCSP answers a second; at scale 80 % of the rate, start in 5 s, p99 of a search 200 ms")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	dir, err := os.MkdirTemp("", "natal-load-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("%d cores, %s, %d certificates from each server on fresh connections, %d at a time\n\n", runtime.NumCPU(), runtime.Version(), o.certificates, o.parallel)
	factory, err := newFactory(filepath.Join(dir, "birth-ca.pem"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	real, err := startReal(ctx, filepath.Join(dir, "data"), factory.path, o.rsa > 0)
	if err != nil {
		return err
	}
	defer real.stop()
	bare, err := startBare(ctx, dir, factory.path)
	if err != nil {
		return err
	}
	defer bare.stop()
	if err := compare(ctx, o, factory, bare, real); err != nil {
		return err
	}
	bare.stop()
	if err := loadOCSP(ctx, o, real); err != nil {
		return err
	}
	real.stop()
	if o.stored == 0 {
		return nil
	}
	return scale(ctx, o, dir, factory)
}

// compare drives both servers in turns.
func compare(ctx context.Context, o options, factory *factory, bare, real *server) error {
	each := o.certificates / o.blocks
	warm := factory.devices("warm", 2*o.parallel)
	for _, s := range []*server{bare, real} {
		if _, err := drive(ctx, s, s.url, warm, o.parallel); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	var bareSum, realSum result
	for block := range o.blocks {
		devices := factory.devices(fmt.Sprintf("load-%d", block), each)
		for _, turn := range []struct {
			*server
			sum *result
		}{{bare, &bareSum}, {real, &realSum}} {
			r, err := drive(ctx, turn.server, turn.url, devices, o.parallel)
			if err != nil {
				return fmt.Errorf("%s: %w", turn.name, err)
			}
			turn.sum.add(r)
		}
	}
	fmt.Println("                     certificates/s      p50      p99   server CPU each      RSS")
	bareSum.print("bare TLS handler", bare)
	realSum.print("est-server, SQLite", real)
	ratio := float64(realSum.cpuEach()) / float64(bareSum.cpuEach())
	fmt.Printf("\nserver CPU, est-server : bare handler = %.2f : 1\n", ratio)
	rss := real.peak()
	if o.rsa > 0 {
		r, err := drive(ctx, real, real.rsaURL, factory.devices("rsa", o.rsa), o.parallel)
		if err != nil {
			return fmt.Errorf("RSA-4096: %w", err)
		}
		fmt.Println()
		r.print("with an RSA-4096 CA", real)
	}
	if o.check && (ratio > 2.0 || realSum.rate() < 400 || rss > 150<<20) {
		return fmt.Errorf("a bound is missed: ratio %.2f (at most 2.0), %.0f certificates/s (at least 400), %d MB (at most 150)", ratio, realSum.rate(), rss>>20)
	}
	return nil
}

// program finds a built binary: in NATAL_BIN, else in bin/.
func program(name string) (string, error) {
	dir := os.Getenv("NATAL_BIN")
	if dir == "" {
		dir = "bin"
	}
	return exec.LookPath(filepath.Join(dir, name))
}
