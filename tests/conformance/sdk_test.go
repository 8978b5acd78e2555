package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"github.com/spiffe/spike-sdk-go/api"
	sdkErrors "github.com/spiffe/spike-sdk-go/errors"
)

// The SDK reads its environment where it likes and ends the process with
// log.Fatal where it likes, so it runs in a process of its own: this test
// binary, started again with childVar set. The child reads a session from its
// standard input, makes the calls in order and writes their outcomes.
const childVar = "SPIKE_CONFORMANCE_CHILD"

type session struct {
	Constructor string // New, NewWithContext or NewWithSource
	Calls       []call
}

// call is one call of a method of *api.API, without its context.
type call struct {
	Method string
	Args   []json.RawMessage
}

type outcome struct {
	Value json.RawMessage // the first result, when there are two
	Code  string          // of the SDK's error, "" for none
	Fatal string          // the process ended during the call, with this on its standard error
}

func TestMain(m *testing.M) {
	if os.Getenv(childVar) == "" {
		os.Exit(m.Run())
	}
	if err := child(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
}

func child(in io.Reader, out io.Writer) error {
	var s session
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var a *api.API
	var err *sdkErrors.SDKError
	switch s.Constructor {
	case "New":
		a, err = api.New()
	case "NewWithContext":
		a, err = api.NewWithContext(ctx)
	case "NewWithSource":
		source, sourceErr := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(os.Getenv("SPIFFE_ENDPOINT_SOCKET"))))
		if sourceErr != nil {
			return sourceErr
		}
		a = api.NewWithSource(source)
	default:
		return fmt.Errorf("no constructor %q", s.Constructor)
	}
	if err != nil {
		return fmt.Errorf("%s: %s", s.Constructor, err.Code)
	}
	encoder := json.NewEncoder(out)
	for _, c := range s.Calls {
		o, err := invoke(ctx, a, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Method, err)
		}
		if err := encoder.Encode(o); err != nil {
			return err
		}
	}
	return nil
}

// invoke calls a method by name: its arguments are decoded into the types that
// the method has, so that a change of the SDK's surface shows.
func invoke(ctx context.Context, a *api.API, c call) (outcome, error) {
	method := reflect.ValueOf(a).MethodByName(c.Method)
	if !method.IsValid() {
		return outcome{}, fmt.Errorf("the SDK has no such method")
	}
	var args []reflect.Value
	given := c.Args
	for i := range method.Type().NumIn() {
		t := method.Type().In(i)
		if t == reflect.TypeFor[context.Context]() {
			args = append(args, reflect.ValueOf(ctx))
			continue
		}
		if len(given) == 0 {
			return outcome{}, fmt.Errorf("it wants more than %d arguments", len(c.Args))
		}
		v, err := argument(t, given[0])
		if err != nil {
			return outcome{}, err
		}
		args, given = append(args, v), given[1:]
	}
	if len(given) > 0 {
		return outcome{}, fmt.Errorf("it wants fewer than %d arguments", len(c.Args))
	}
	results := method.Call(args)
	var o outcome
	if err := results[len(results)-1].Interface().(*sdkErrors.SDKError); err != nil {
		o.Code = string(err.Code)
	}
	if len(results) == 2 {
		var err error
		if o.Value, err = json.Marshal(results[0].Interface()); err != nil {
			return o, err
		}
	}
	return o, nil
}

func argument(t reflect.Type, raw json.RawMessage) (reflect.Value, error) {
	v := reflect.New(t)
	switch t {
	case reflect.TypeFor[io.Reader]():
		var b []byte
		if err := json.Unmarshal(raw, &b); err != nil {
			return v, err
		}
		// Not a *bytes.Reader: a stream of unknown length, as from a pipe.
		v.Elem().Set(reflect.ValueOf(io.MultiReader(bytes.NewReader(b))))
		return v.Elem(), nil
	case reflect.TypeFor[secretsharing.Share]():
		var b []byte
		if err := json.Unmarshal(raw, &b); err != nil {
			return v, err
		}
		share := secretsharing.Share{ID: group.P256.NewScalar().SetUint64(1), Value: group.P256.NewScalar()}
		if err := share.Value.UnmarshalBinary(b); err != nil {
			return v, err
		}
		return reflect.ValueOf(share), nil
	}
	return v.Elem(), json.Unmarshal(raw, v.Interface())
}

// run plays a session in a child with the environment given and returns as many
// outcomes as there are calls; after one that is fatal the others are empty.
func run(t *testing.T, env []string, s session) []outcome {
	t.Helper()
	in, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	// Nothing of ours is inherited that the SDK could read.
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SPIKE_") && !strings.HasPrefix(kv, "SPIFFE_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(append(cmd.Env, childVar+"=1"), env...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	failed := cmd.Run()
	var outcomes []outcome
	for line := range bytes.Lines(out.Bytes()) {
		var o outcome
		// The SDK logs JSON to standard output as well; ours has these fields only.
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		if decoder.Decode(&o) == nil {
			outcomes = append(outcomes, o)
		}
	}
	if failed != nil {
		if code := cmd.ProcessState.ExitCode(); code != 1 || len(outcomes) >= len(s.Calls) {
			t.Fatalf("the child ended with %v: %s %s", failed, errs.String(), out.String())
		}
		outcomes = append(outcomes, outcome{Fatal: strings.TrimSpace(errs.String() + out.String())})
	} else if len(outcomes) != len(s.Calls) {
		t.Fatalf("%d outcomes of %d calls: %s", len(outcomes), len(s.Calls), out.String())
	}
	for len(outcomes) < len(s.Calls) {
		outcomes = append(outcomes, outcome{})
	}
	return outcomes
}
