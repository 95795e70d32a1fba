"""What a paper claims (`claims`), which measurements that means (`selection`), what they say about it (`verdicts`), in
words (`wording`)."""
