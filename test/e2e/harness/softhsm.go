// SoftHSM2: PKCS#11 tokens in files of the test, to be taken away and put back; and a module before it that makes a token slow.

package harness

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// HSM is a SoftHSM2 with a configuration of its own.
type HSM struct {
	Conf   string // the file for SOFTHSM2_CONF
	Module string // libsofthsm2.so
	tokens string // directory with a directory for each token
	away   string
}

// PIN is that of every token of the tests.
const PIN = "648219"

var softHSMModules = []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"}

// NewHSM makes an empty SoftHSM2 in dir.
func NewHSM(t testing.TB, dir string) *HSM {
	t.Helper()
	RequirePrograms(t, "softhsm2-util", "pkcs11-tool")
	h := &HSM{Conf: filepath.Join(dir, "softhsm2.conf"), tokens: filepath.Join(dir, "tokens"), away: filepath.Join(dir, "away")}
	for _, m := range softHSMModules {
		if _, err := os.Stat(m); err == nil {
			h.Module = m
		}
	}
	if h.Module == "" {
		t.Fatalf("softhsm2-util is there and none of %v", softHSMModules)
	}
	for _, d := range []string{h.tokens, h.away} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", h.tokens)
	if err := os.WriteFile(h.Conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

// Env is what a program needs in its environment to use the tokens.
func (h *HSM) Env() []string { return []string{"SOFTHSM2_CONF=" + h.Conf} }

// InitToken makes a token with PIN.
func (h *HSM) InitToken(t testing.TB, label string) {
	t.Helper()
	Command{Path: Program(t, "softhsm2-util"), Args: []string{"--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "73829104"}, Env: h.Env()}.MustRun(t)
}

// URI is that of a key in a token; the PIN is in pinFile.
func (h *HSM) URI(label, object, pinFile string) string {
	return fmt.Sprintf("pkcs11:module-path=%s;token=%s;object=%s?pin-source=%s", h.Module, label, object, pinFile)
}

// Remove takes a token away.
func (h *HSM) Remove(t testing.TB, label string) { h.move(t, label, h.tokens, h.away) }

// Restore puts it back.
func (h *HSM) Restore(t testing.TB, label string) { h.move(t, label, h.away, h.tokens) }

func (h *HSM) move(t testing.TB, label, from, to string) {
	t.Helper()
	all, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		content, err := os.ReadFile(filepath.Join(from, d.Name(), "token.object"))
		if err != nil || !strings.Contains(string(content), label) {
			continue
		}
		if err := os.Rename(filepath.Join(from, d.Name()), filepath.Join(to, d.Name())); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no token %s in %s", label, from)
}

// Tool runs pkcs11-tool, logged in to a token.
func (h *HSM) Tool(t testing.TB, label string, args ...string) string {
	t.Helper()
	args = append([]string{"--module", h.Module, "--token-label", label, "--login", "--pin", PIN}, args...)
	return Command{Path: Program(t, "pkcs11-tool"), Args: args, Env: h.Env()}.MustRun(t).Output()
}

// SlowModule is a PKCS#11 module before SoftHSM2's that waits before each signature, and before each search for an object, for as many
// milliseconds as the two numbers in the file control say. A process that uses it does not use SoftHSM2 beside it.
func (h *HSM) SlowModule(t testing.TB, dir string) (module, control string) {
	t.Helper()
	RequirePrograms(t, "cc")
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "slow.c")
	module, control = filepath.Join(dir, "slow.so"), filepath.Join(dir, "slow")
	if err := os.WriteFile(source, []byte(slowModule), 0o600); err != nil {
		t.Fatal(err)
	}
	SetSlow(t, control, 0, 0)
	MustRun(t, Program(t, "cc"), "-shared", "-fPIC", "-o", module, "-I", strings.TrimSpace(string(headers)),
		"-DTARGET=\""+h.Module+"\"", "-DCONTROL=\""+control+"\"", source, "-ldl")
	return module, control
}

// SetSlow sets the milliseconds of a slow module.
func SetSlow(t testing.TB, control string, sign, find int) {
	t.Helper()
	if err := os.WriteFile(control+".new", []byte(fmt.Sprintln(sign, find)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(control+".new", control); err != nil {
		t.Fatal(err)
	}
}

// HexID is a key's id as pkcs11-tool wants it, from a URI.
func HexID(uri string) string {
	_, rest, _ := strings.Cut(uri, "id=")
	rest, _, _ = strings.Cut(rest, ";")
	rest, _, _ = strings.Cut(rest, "?")
	id, err := hex.DecodeString(strings.ReplaceAll(rest, "%", ""))
	if err != nil {
		return ""
	}
	return hex.EncodeToString(id)
}

const slowModule = `
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "pkcs11go.h"

static CK_FUNCTION_LIST_PTR real;
static CK_FUNCTION_LIST own;

static void pause_for(int which)
{
	long ms[2] = {0, 0};
	FILE *f = fopen(CONTROL, "r");
	if (f) {
		if (fscanf(f, "%ld %ld", &ms[0], &ms[1]) != 2)
			ms[0] = ms[1] = 0;
		fclose(f);
	}
	struct timespec t = {ms[which] / 1000, ms[which] % 1000 * 1000000};
	nanosleep(&t, 0);
}

static CK_RV slow_sign(CK_SESSION_HANDLE s, CK_BYTE_PTR d, CK_ULONG dl, CK_BYTE_PTR o, CK_ULONG_PTR ol)
{
	if (o)
		pause_for(0);
	return real->C_Sign(s, d, dl, o, ol);
}

static CK_RV slow_find(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR a, CK_ULONG n)
{
	pause_for(1);
	return real->C_FindObjectsInit(s, a, n);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out)
{
	if (!real) {
		void *lib = dlopen(TARGET, RTLD_NOW | RTLD_LOCAL);
		CK_C_GetFunctionList get = lib ? (CK_C_GetFunctionList)dlsym(lib, "C_GetFunctionList") : 0;
		if (!get || get(&real) != CKR_OK)
			return CKR_GENERAL_ERROR;
		memcpy(&own, real, sizeof own);
		own.C_Sign = slow_sign;
		own.C_FindObjectsInit = slow_find;
	}
	*out = &own;
	return CKR_OK;
}
`
