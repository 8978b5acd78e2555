package s3

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/spike-ha/spike-ha/snapshot"
)

// Answer is what a probe found out about one thing.
type Answer string

// The answers.
const (
	Yes       Answer = "yes"
	No        Answer = "no"
	Forbidden Answer = "not allowed" // with these credentials
	Unknown   Answer = "unknown"
)

// Capabilities is what a store does, and what the credentials may do there.
type Capabilities struct {
	Create, Read, List, Delete Answer
	Conditional                Answer // it refuses a second PUT of a name when asked to
	Fresh                      Answer // a list shows at once what was stored
	Versioning                 Answer
	Lock                       Answer        // objects are locked from the beginning
	LockMode                   string        // COMPLIANCE or GOVERNANCE
	LockFor                    time.Duration // years count 365 days
	Clock                      time.Duration // of the store, against this machine's
	Left                       []string      // objects of the probe that could not be deleted
}

// contenders is how many try at a time to create one name.
const contenders = 4

// Probe finds out by trying. It stores a few bytes twice under new names in prefix probe/, reads, lists and deletes them; what the credentials do not
// allow is an answer, too. Who may not delete leaves them there, where no archive looks. Errors: ErrUnavailable, and ErrForbidden for what makes all else moot: no such bucket, unknown credentials.
func (b *Bucket) Probe(ctx context.Context, prefix string) (c Capabilities, err error) {
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	p := probe{b: b, dir: prefix + "probe/" + strings.ToLower(rand.Text()) + "/", c: Capabilities{Conditional: Unknown, Fresh: Unknown, Versioning: Unknown, Lock: Unknown, Read: Unknown, Delete: Unknown}}
	for _, step := range []func(context.Context) error{p.create, p.contend, p.list, p.read, p.lock} {
		if err = step(ctx); err != nil {
			break
		}
	}
	// What was stored is removed even when the caller has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.patience.silence)
	defer cancel()
	return p.c, errors.Join(err, p.remove(ctx))
}

// probe is a probe on its way.
type probe struct {
	b      *Bucket
	dir    string
	mu     sync.Mutex // guards stored
	stored []types.ObjectIdentifier
	c      Capabilities
}

// answer is what an error of a request says, and the error when it says nothing of the request.
func (p *probe) answer(ctx context.Context, err error) (Answer, error) {
	switch err := p.b.failure(ctx, err); {
	case err == nil:
		return Yes, nil
	case errors.Is(err, snapshot.ErrForbidden) && accessDenied(err):
		return Forbidden, nil
	default:
		return Unknown, err
	}
}

// put tries to store content, and says whether that was refused because the name is taken.
func (p *probe) put(ctx context.Context, name, content string, conditional bool) (out *s3.PutObjectOutput, taken bool, err error) {
	in := &s3.PutObjectInput{Bucket: &p.b.bucket, Key: aws.String(p.dir + name), Body: strings.NewReader(content)}
	if conditional {
		in.IfNoneMatch = aws.String("*")
	}
	out, err = p.b.client.PutObject(ctx, in)
	if err == nil {
		p.mu.Lock()
		p.stored = append(p.stored, types.ObjectIdentifier{Key: in.Key, VersionId: out.VersionId})
		p.mu.Unlock()
	}
	return out, errors.Is(p.b.failure(ctx, err), snapshot.ErrExists), err
}

const first = "the first content"

func (p *probe) create(ctx context.Context) error {
	out, _, err := p.put(ctx, "object", first, true)
	if err != nil && unknownRequest(err) {
		p.c.Conditional = No
		out, _, err = p.put(ctx, "object", first, false)
	}
	if p.c.Create, err = p.answer(ctx, err); p.c.Create != Yes {
		return err
	}
	p.c.Versioning = No
	if aws.ToString(out.VersionId) != "" && aws.ToString(out.VersionId) != "null" {
		p.c.Versioning = Yes
	}
	p.c.Clock, _ = awsmiddleware.GetAttemptSkew(out.ResultMetadata)
	return nil
}

// contend lets some create one name at the same time, and then one more create it after them.
func (p *probe) contend(ctx context.Context) error {
	if p.c.Create != Yes || p.c.Conditional == No {
		return nil
	}
	var wg sync.WaitGroup
	results := make([]error, contenders+1)
	won := 0
	for i := range contenders {
		wg.Go(func() {
			_, taken, err := p.put(ctx, "contended", fmt.Sprint("contender ", i), true)
			if results[i] = err; taken {
				results[i] = snapshot.ErrExists
			}
		})
	}
	wg.Wait()
	if _, taken, err := p.put(ctx, "object", "a second content", true); taken {
		results[contenders] = snapshot.ErrExists
	} else if results[contenders] = err; err == nil {
		won = contenders // the condition is ignored
	}
	for _, err := range results[:contenders] {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, snapshot.ErrExists):
			return p.b.failure(ctx, err)
		}
	}
	p.c.Conditional = No
	if won == 1 {
		p.c.Conditional = Yes
	}
	return nil
}

func (p *probe) list(ctx context.Context) error {
	out, err := p.b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &p.b.bucket, Prefix: &p.dir})
	if p.c.List, err = p.answer(ctx, err); p.c.List != Yes || p.c.Create != Yes {
		return err
	}
	p.c.Fresh = No
	for _, o := range out.Contents {
		if aws.ToString(o.Key) == p.dir+"object" {
			p.c.Fresh = Yes
		}
	}
	return nil
}

func (p *probe) read(ctx context.Context) error {
	if p.c.Create != Yes {
		return nil
	}
	out, err := p.b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &p.b.bucket, Key: aws.String(p.dir + "object")})
	if p.c.Read, err = p.answer(ctx, err); p.c.Read != Yes {
		return err
	}
	defer out.Body.Close()
	if content, err := io.ReadAll(io.LimitReader(out.Body, 1<<10)); err != nil {
		return p.b.failure(ctx, err)
	} else if string(content) != first && p.c.Conditional == Yes {
		return fmt.Errorf("%w: it gives another content than it was given", snapshot.ErrUnavailable)
	}
	return nil
}

func (p *probe) lock(ctx context.Context) error {
	out, err := p.b.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &p.b.bucket})
	switch said := p.b.failure(ctx, err); {
	case errors.Is(said, snapshot.ErrNotFound) || err != nil && unknownRequest(err): // it has none, or does not know of any
		p.c.Lock = No
		return nil
	case err != nil:
		p.c.Lock, err = p.answer(ctx, err)
		return err
	}
	p.c.Lock = No
	if l := out.ObjectLockConfiguration; l != nil && l.ObjectLockEnabled == types.ObjectLockEnabledEnabled && l.Rule != nil && l.Rule.DefaultRetention != nil {
		r := l.Rule.DefaultRetention
		p.c.Lock, p.c.LockMode = Yes, string(r.Mode)
		p.c.LockFor = time.Duration(aws.ToInt32(r.Days)+365*aws.ToInt32(r.Years)) * 24 * time.Hour
	}
	return nil
}

// remove removes what was stored: its versions, where that is allowed, or else it hides them.
func (p *probe) remove(ctx context.Context) error {
	var failed error
	for _, o := range p.stored {
		_, err := p.b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &p.b.bucket, Key: o.Key, VersionId: o.VersionId})
		versioned := p.c.Versioning == Yes
		if versioned && err != nil {
			_, err = p.b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &p.b.bucket, Key: o.Key})
		}
		answer, err := p.answer(ctx, err)
		if answer != Yes {
			p.c.Left = append(p.c.Left, *o.Key)
		}
		if p.c.Delete != Yes {
			p.c.Delete = answer
		}
		if err != nil && failed == nil {
			failed = fmt.Errorf("removing %s: %w", *o.Key, err)
		}
	}
	return failed
}

// maxClock is a difference of clocks at which stores do not yet refuse requests, and somebody should hear of it.
const maxClock = time.Minute

// String is a report for people, with what is to be done about it.
func (c Capabilities) String() string {
	var b strings.Builder
	line := func(what string, a Answer, advice string) {
		if advice != "" {
			advice = "  " + advice
		}
		fmt.Fprintf(&b, "%-22s %-12s%s\n", what, a, advice)
	}
	advise := func(when bool, advice string) string {
		if when {
			return advice
		}
		return ""
	}
	line("store objects", c.Create, advise(c.Create == Forbidden, "peers need it: deploy/s3/writer.json"))
	line("list objects", c.List, advise(c.List == Forbidden, "all need it: deploy/s3"))
	line("read objects", c.Read, advise(c.Read == Forbidden, "right for a peer; restoring needs it: deploy/s3/restorer.json"))
	line("delete objects", c.Delete, advise(c.Delete == Forbidden, "right for a peer; pruning needs it: deploy/s3/pruner.json"))
	line("conditional PUT", c.Conditional, advise(c.Conditional == No, "write conditional=false in the bucket's address; peers look first then"))
	line("lists are fresh", c.Fresh, advise(c.Fresh == No, "a new shipper may ship again what is there; no harm"))
	line("versioning", c.Versioning, advise(c.Versioning == No, "switch it on, so that nobody's delete is for ever"))
	lock := advise(c.Lock == No, "consider a default retention")
	if c.Lock == Yes {
		lock = fmt.Sprintf("%s, %d days", c.LockMode, int(c.LockFor.Hours()/24))
	}
	line("object lock", c.Lock, lock)
	if d := c.Clock.Abs(); d > maxClock {
		fmt.Fprintf(&b, "%-22s %s  set the clock: stores refuse requests at 15 minutes\n", "clocks differ by", d.Round(time.Second))
	}
	for _, name := range c.Left {
		fmt.Fprintf(&b, "%-22s %s\n", "left behind", name)
	}
	return b.String()
}

// Exclusive implements snapshot.Exclusive, by trying.
func (b *Bucket) Exclusive(ctx context.Context, prefix string) error {
	if b.plain {
		return fmt.Errorf("%w; its address says conditional=false", snapshot.ErrNotExclusive)
	}
	c, err := b.Probe(ctx, prefix)
	switch {
	case c.Conditional == Yes:
		return nil
	case err != nil:
		return err
	case c.Create == Forbidden:
		return fmt.Errorf("%w: it may not store objects below %s", snapshot.ErrForbidden, prefix)
	}
	return fmt.Errorf("%w: 'spikectl snapshot probe' shows what it does", snapshot.ErrNotExclusive)
}
